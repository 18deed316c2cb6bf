"""Peak memory of `convunext predict` beside `--max-memory`: images of many sizes, a stack, a wide TIFF; by engine.

    python benchmarks/memory.py --engines openvino onnxruntime keras --markdown docs/robustness.md

The runtime's own is the peak of the same command on one image of 64x64 pixels. The command exits with status 1 if a
peak is above that by more than was allowed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from dl_techniques.images.raster import BandWriter
from dl_techniques.inference.memory import parse_memory
from tables import replace_section


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return blobs with noise, `(height, width)`, uint8."""
    y, x = np.mgrid[:height, :width]
    blobs = 60 * (1 + np.sin(x / 17) * np.sin(y / 23))
    return (blobs + rng.uniform(0, 60, blobs.shape)).astype("uint8")


def write_small(path: Path) -> None:
    path.mkdir()
    Image.fromarray(noise(np.random.default_rng(0), 64, 64)).save(path / "0.png")


def write_sizes(path: Path) -> None:
    path.mkdir()
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width = rng.integers(16, 216, 2)
        Image.fromarray(noise(rng, height, width)).save(path / f"{number}.png")


def write_pages(path: Path) -> None:
    rng = np.random.default_rng(0)
    pages = np.stack([noise(rng, 512, 512) for _ in range(10)])
    with tifffile.TiffWriter(path) as writer:
        for number in range(300):
            writer.write(pages[number % 10], photometric="minisblack", compression="zlib", metadata=None)


def write_wide(path: Path) -> None:
    writer, rng = BandWriter(path, (3_000, 20_000, 1), "uint8"), np.random.default_rng(0)
    for _ in range(0, 3_000, 250):
        writer.write(noise(rng, 250, 20_000)[..., None])
    writer.close()


INPUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "one image of 64x64": ("small", write_small),
    "300 images of 300 sizes": ("sizes", write_sizes),
    "a stack of 300 pages of 512x512": ("pages.tif", write_pages),
    "a TIFF of 20000x3000": ("wide.tif", write_wide),
}


def peak(arguments: list[str]) -> tuple[float, float]:
    """Run the command; return the largest memory it had at a time, in bytes, and its seconds."""
    code = f"import sys; from dl_techniques.cli import main; sys.exit(main({arguments!r}))"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return 1024.0 * usage.ru_maxrss, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="denoise-gray")
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime", "keras"])
    parser.add_argument("--max-memory", default="500MB")
    parser.add_argument("--markdown", type=Path, help="document to write the table into")
    options = parser.parse_args()
    allowed, exceeded = parse_memory(options.max_memory), False
    lines = [f"| engine | input | peak, MB | above the runtime's own, MB of {options.max_memory} | s |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, write in INPUTS.values():
            write(Path(folder) / name)
        for engine in options.engines:
            own = 0.0
            for words, (name, _) in INPUTS.items():
                command = [
                    "predict",
                    options.model,
                    f"{folder}/{name}",
                    "-o",
                    f"{folder}/{engine}-{name}",
                    "--overwrite",
                ]
                command += ["--max-memory", options.max_memory, "--engine", engine]
                if not own:
                    peak(command)  # converts the model
                most, seconds = peak(command)
                own = own or most
                exceeded |= most - own > allowed
                lines.append(f"| {engine} | {words} | {most / 1e6:.0f} | {(most - own) / 1e6:.0f} | {seconds:.0f} |")
                print(lines[-1], flush=True)
    if options.markdown:
        replace_section(options.markdown, "memory", "\n".join(lines))
    sys.exit(exceeded)


if __name__ == "__main__":
    main()
