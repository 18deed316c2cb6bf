"""Tiles against the whole image: how far off in each pass, what it does to Dice, how much memory it takes.

Run: `python benchmarks/tiling.py passes --model run/ --images images/`, the same with `dice` and `--masks masks/`, or
`python benchmarks/tiling.py memory --model run/ --side 8192 --max-memory 2GB`; `pixels --model run/ --engine openvino`
prints what a runtime takes for each pixel and what is reckoned.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dl_techniques.datasets.pairs import find_pairs
from dl_techniques.engines.loading import load_engine
from dl_techniques.images.files import find_images, read_image
from dl_techniques.images.raster import BandWriter
from dl_techniques.inference.memory import bytes_per_pixel
from dl_techniques.inference.network import Network
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.tiling import Tile
from dl_techniques.metrics import Confusion
from dl_techniques.tasks.base import Statistics
from dl_techniques.tasks.segmentation.masks import read_mask
from dl_techniques.tasks.segmentation.task import SegmentationTask


def mosaic(images: list[np.ndarray], across: int, height: int, width: int) -> np.ndarray:
    """Return images of one size side by side, row by row, cropped to an odd size."""
    rows = [np.concatenate(images[top : top + across], axis=1) for top in range(0, len(images), across)]
    return np.concatenate(rows)[:height, :width]


def alike(images: list[np.ndarray]) -> list[np.ndarray]:
    """Return those of the size that most have."""
    sizes = [image.shape for image in images]
    return [image for image in images if image.shape == max(set(sizes), key=sizes.count)]


def passes(arguments: argparse.Namespace) -> None:
    """Print how far tiles are from the whole, pass by pass, for three sizes of tiles."""
    predictor = Predictor(arguments.model)
    images = alike([read_image(path).pixels for path in find_images([Path(arguments.images)])])[:12]
    pixels = mosaic(images, 4, 701, 903)
    x = predictor.task.scaling(Statistics.of(pixels), None).apply(pixels)
    whole = predictor.engine.function(x[None])[0]
    print(f"{x.shape[1]}x{x.shape[0]} pixels; the model looks {predictor.network.halo} pixels far")
    for tile in arguments.tiles:
        result, errors = np.empty_like(whole), []

        def receive(part: Tile, output: np.ndarray, number: int, result=result) -> None:
            result[part.write] = output

        def on_tile(done: int, total: int, result=result, errors=errors) -> None:
            if done == total:
                errors.append(float(np.abs(result - whole).max() / np.ptp(whole)))

        done = predictor.network.scan(x, tile, receive, on_tile)
        print(f"| {tile} | {done[0].tiles} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")


def dice(arguments: argparse.Namespace) -> None:
    """Print the mean Dice of whole images, of exact tiles and of tiles normalized by themselves."""
    pairs = find_pairs(arguments.images, arguments.masks)[-arguments.last :]
    predictors = {
        "whole": Predictor(arguments.model, max_memory="100GB", tile=10**6),
        "exact": Predictor(arguments.model, global_stats="exact", tile=arguments.tiles[0]),
        "tile": Predictor(arguments.model, global_stats="tile"),
    }
    images, masks = ([read(pair) for pair in pairs] for read in (lambda p: read_image(p.image).pixels, _mask))
    if arguments.mosaic > 1:
        images, masks = alike(images), alike(masks)
        count = arguments.mosaic**2
        groups = range(0, len(images) - count + 1, count)
        images = [mosaic(images[n : n + count], arguments.mosaic, 10**6, 10**6) for n in groups]
        masks = [mosaic(masks[n : n + count], arguments.mosaic, 10**6, 10**6) for n in groups]
    print(f"{len(images)} images of {images[0].shape[1]}x{images[0].shape[0]} pixels")
    for name, predictor in predictors.items():
        if not isinstance(predictor.task, SegmentationTask):
            raise SystemExit("The model must be a segmenter.")
        classes = predictor.task.classes
        total, start, tiles = Confusion(classes.count), time.perf_counter(), 0
        for image, mask in zip(images, masks, strict=True):
            prediction = predictor(image)
            tiles = prediction.passes[0].tiles * len(prediction.passes)
            truth = classes.encode(mask, Path(name))
            total.update(prediction.pixels[..., 0], truth, np.ones(truth.shape, bool))
        seconds = time.perf_counter() - start
        print(f"| {name} | {total.mean_dice:.4f} | {tiles} | {seconds:.1f} |")


def _mask(pair) -> np.ndarray:
    return read_mask(pair.target)


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak of the resident memory of `convunext predict` on a large TIFF and on one of a few pixels."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        peaks = {}
        for name, side in (("small", 64), ("large", arguments.side)):
            write_noise(Path(folder) / f"{name}.tif", side)
            command = ["predict", arguments.model, f"{folder}/{name}.tif", "-o", f"{folder}/out-{name}.tif"]
            limit = ["--max-memory", arguments.max_memory, "--global-stats", arguments.global_stats]
            start = time.perf_counter()
            code = f"import sys; from dl_techniques.cli import main; sys.exit(main({command + limit!r}))"
            subprocess.run([sys.executable, "-c", f"{code}"], check=True)
            peaks[name] = peak_of_children() / 1e6
            seconds = time.perf_counter() - start
            print(f"{side}x{side}: peak {peaks[name]:.0f} MB, {seconds:.0f} s")
        print(f"above the runtime's own {peaks['small']:.0f} MB: {peaks['large'] - peaks['small']:.0f} MB")


def pixels(arguments: argparse.Namespace) -> None:
    """Print the bytes that a network takes for each pixel, in one piece and as a tile, and those reckoned."""
    engine = load_engine(arguments.model, arguments.engine)
    network, rng = Network(engine), np.random.default_rng(0)

    def tile(side: int) -> None:
        statistics = np.full(sum(engine.tiling.sums_of_squares if engine.tiling else ()), -1, "float32")
        image = rng.random((side, side, engine.channels), dtype="float32")
        if engine.tile_function:
            engine.tile_function(image, np.ones((side, side), "float32"), statistics)

    def whole(side: int) -> None:
        engine.function(rng.random((1, side, side, engine.channels), dtype="float32"))

    for name, call in {"in one piece": whole, **({"tiles": tile} if engine.tile_function else {})}.items():
        call(64)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        for _ in range(2):  # for sizes that come once and for one that comes again, which some runtimes compile for
            call(arguments.side)
        each = (resident("VmHWM") - before) / arguments.side**2
        reckoned = bytes_per_pixel(network)
        print(f"{engine.source} on {engine.runtime}, {name}: {each:.0f} bytes a pixel, {reckoned} reckoned")


def resident(what: str) -> int:
    """Return the resident memory of this process, `VmRSS`, or its peak, `VmHWM`, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def peak_of_children() -> float:
    """Return the largest resident memory that any child process had, in bytes; the small one runs first."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def write_noise(path: Path, side: int) -> None:
    """Write a square grey image of blobs and noise, band by band."""
    writer, rng = BandWriter(path, (side, side, 1), "uint8"), np.random.default_rng(0)
    for top in range(0, side, 256):
        y, x = np.mgrid[top : min(top + 256, side), :side]
        blobs = 60 * (1 + np.sin(x / 17) * np.sin(y / 23))
        writer.write((blobs + rng.uniform(0, 60, blobs.shape)).astype("uint8")[..., None])
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["passes", "dice", "memory", "pixels"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--images")
    parser.add_argument("--masks")
    parser.add_argument("--last", type=int, default=10**6, help="take the last so many images, by name")
    parser.add_argument("--mosaic", type=int, default=1, help="stitch so many images across and down")
    parser.add_argument("--tiles", type=int, nargs="+", default=[320, 384, 512])
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--max-memory", default="2GB")
    parser.add_argument("--global-stats", default="auto")
    parser.add_argument("--engine", default="openvino", help="what `pixels` looks at")
    parser.add_argument("--scratch", help="folder for large files; the system's if not given")
    arguments = parser.parse_args()
    {"passes": passes, "dice": dice, "memory": memory, "pixels": pixels}[arguments.what](arguments)


if __name__ == "__main__":
    main()
