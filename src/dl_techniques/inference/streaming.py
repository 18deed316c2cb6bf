"""Images larger than the memory, from a TIFF to a TIFF."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import open_windows
from dl_techniques.images.raster import BLOCK, BandWriter
from dl_techniques.images.source import Raster
from dl_techniques.inference.denoising import known_unit
from dl_techniques.inference.memory import WHOLE_REMEDY, tile_bytes
from dl_techniques.inference.network import Network, Pass
from dl_techniques.inference.pipeline import OnTile
from dl_techniques.inference.tiling import Tile
from dl_techniques.tasks.segmentation.classes import Classes

BAND = 256  # rows at once while statistics are taken


@dataclass(frozen=True)
class Statistics:
    """Of all samples of an image: mean, standard deviation, and the largest magnitude."""

    mean: float
    deviation: float
    largest: float


@dataclass(frozen=True)
class View:
    """Some of the samples of a raster's pixels, in any order, window by window."""

    raster: Raster
    samples: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.raster.shape[:2], len(self.samples))

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        pixels = self.raster[window]
        return pixels if self.samples == tuple(range(pixels.shape[2])) else pixels[..., list(self.samples)]

    def bands(self) -> Iterator[np.ndarray]:
        """Yield all rows, `BAND` at a time."""
        for top in range(0, self.shape[0], BAND):
            yield self[slice(top, min(top + BAND, self.shape[0])), slice(0, self.shape[1])]


@dataclass(frozen=True)
class Layout:
    """Which samples of a file's pixels go into a network.

    Attributes:
        runs: The samples of each run of the network; several where colours are restored one by one.
        alpha: The sample that is put beside a restored image as it is, `None` if there is none.
        notes: What was left out or repeated, in words.
    """

    runs: tuple[tuple[int, ...], ...]
    alpha: int | None = None
    notes: tuple[str, ...] = ()


def plan_layout(raster: Raster, wanted: int, restores: bool, source: str) -> Layout:
    """Adapt the samples of a file to a network, as whole images are adapted.

    Args:
        raster: The file.
        wanted: Channels of the network.
        restores: Whether it returns images, which keep their alpha, or classes.
        source: The model, for messages.

    Raises:
        FileError: Something would be lost.
    """
    found = raster.shape[2]
    if found == wanted:
        return Layout((tuple(range(found)),))
    colours = found - (found % 2 == 0)
    beyond = colours if found > colours else None
    if found <= 4 and restores and wanted in (1, colours):
        runs = tuple((n,) for n in range(colours)) if wanted == 1 else (tuple(range(colours)),)
        return Layout(runs, beyond)
    notes = () if beyond is None else ("alpha left out",)
    if found <= 4 and not restores and wanted == colours:
        return Layout((tuple(range(colours)),), None, notes)
    if found <= 2 and not restores and wanted == 3:
        return Layout(((0, 0, 0),), None, (*notes, "grey taken as RGB"))
    if 3 <= found <= 4 and not restores and wanted == 1:
        if all((band == band[..., :1]).all() for band in View(raster, (0, 1, 2)).bands()):
            return Layout(((0,),), None, (*notes, "RGB of equal colours taken as grey"))
    reason = f"has {colours if found <= 4 else found} channels; {source} takes {wanted}."
    raise FileError(str(raster.path), reason, "Convert it, or name another model.")


def measure_raster(view: View) -> Statistics:
    """Return the statistics of an image, read twice.

    Raises:
        FileError: It holds samples that are not finite, or too large for float32.
    """
    count = int(np.prod(view.shape))
    total, low, high, bad = 0.0, np.inf, -np.inf, 0
    for band in view.bands():
        if band.dtype.kind == "f":
            bad += int(band.size - np.count_nonzero(np.isfinite(band)))
        total += float(band.sum(dtype="float64"))
        low, high = min(low, float(band.min())), max(high, float(band.max()))
    if bad:
        raise FileError(str(view.raster.path), f"holds {bad} samples that are NaN or infinite.", "Repair it.")
    mean = low if low == high else total / count
    squares = sum(float(np.square(band - mean).sum()) for band in view.bands())
    return Statistics(mean, 0.0 if low == high else float(np.sqrt(squares / count)), max(abs(low), abs(high)))


@dataclass(frozen=True)
class Normalized:
    """An image as a network wants it: `(x − shift) / divisor`, float32, window by window."""

    view: View
    shift: float
    divisor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return ((self.view[window].astype("float64") - self.shift) / self.divisor).astype("float32")


def plan_streaming(network: Network, raster_size: tuple[int, int], sample_bytes: int, memory: int) -> int:
    """Return the height and width of the largest tile so that network and bands of the image stay within the memory.

    Raises:
        ArgumentError: Not even the smallest do, or the model takes whole images only.
    """
    smallest = network.smallest_tile
    if smallest is None:
        rule = f"must hold {raster_size[1]}x{raster_size[0]} pixels: {network.engine.source} takes images whole"
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", WHOLE_REMEDY)

    def needed(tile: int) -> float:
        kept = tile - 2 * network.halo  # rows; the reader keeps two bands, the writers three
        bands = raster_size[1] * (2 * tile * sample_bytes + 3 * kept * (1 + 4 * network.outputs))
        return tile_bytes(network, tile) + bands

    tile = smallest
    if needed(tile) > memory:
        rule = f"must be at least {needed(tile) / 1e6:.0f} MB for an image {raster_size[1]} pixels wide"
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", "Raise --max-memory.")
    while not network.tiled_by_patch and tile < max(raster_size) and needed(tile + network.multiple) <= memory:
        tile += network.multiple
    return tile


def stream_file(
    network: Network,
    classes: Classes | None,
    standard: bool,
    source: Path,
    output: Path,
    probabilities: Path | None,
    memory: int,
    on_tile: OnTile = lambda done, total: None,
) -> tuple[tuple[Pass, ...], tuple[str, ...]]:
    """Apply a model to a TIFF of any size and write the result as one.

    Args:
        network: The model.
        classes: Of a segmenter, `None` for a model that restores.
        standard: Whether the model wants mean 0 and variance 1 over the whole image.
        source: A TIFF of one page, in tiles or strips.
        output: Class indices, labels, a channel for each, or the restored image in the type of the source.
        probabilities: Where those of a segmenter go, if wanted.
        memory: Bytes that arrays and network may take.
        on_tile: Called with the number of tiles done and their total in a pass after each.

    Returns:
        The passes, and what was done to the samples on the way, in words.

    Raises:
        FileError: The file is broken, has other channels than the model, or cannot be read in parts.
        ArgumentError: The memory is too small.
    """
    with open_windows(source, memory // 4) as raster:
        layout = plan_layout(raster, network.engine.channels, classes is None, network.engine.source)
        left = memory - 2 * raster.block_bytes  # what is decoded, before it is in the cache
        network.tile = plan_streaming(network, raster.shape[:2], raster.shape[2] * raster.dtype.itemsize, left)
        raster.cache = 2 * network.tile * raster.shape[1] * raster.shape[2] * raster.dtype.itemsize
        if classes is None:
            return _restore(network, raster, layout, output, on_tile), layout.notes
        view = View(raster, layout.runs[0])
        found = measure_raster(view)
        if found.largest > float(np.finfo("float32").max):
            raise ArgumentError("pixels", "must have magnitudes that float32 holds", found.largest)
        given = Normalized(view, found.mean, found.deviation or 1.0) if standard else Normalized(view, 0.0, 1.0)
        makers: list[Maker] = []
        if probabilities is not None:
            makers.append(Maker(probabilities, network.outputs, np.dtype("float32"), _floats))
        samples = classes.count if classes.labels else 1
        turned = {key: value for key, value in raster.extras.items() if key == "orientation"}

        def choose(x: np.ndarray) -> np.ndarray:
            chosen = classes.decide(x)[0] if x.dtype.kind == "f" else x  # some exports return classes
            return chosen.reshape(*x.shape[:2], samples)

        makers.append(Maker(output, samples, np.dtype("uint8"), choose))
        makers = [replace(maker, extras=turned) for maker in makers]
        return _write_passes(network, given, makers, on_tile), layout.notes


def _floats(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        raise ArgumentError("probabilities", "must not be asked of an export that returns classes", True)
    return x


def _restore(network: Network, raster: Raster, layout: Layout, output: Path, on_tile: OnTile) -> tuple[Pass, ...]:
    """Write a restored image; one that takes several runs or has alpha is put together from its parts at the end."""
    colours = sum(len(run) for run in layout.runs)
    largest = measure_raster(View(raster, tuple(range(colours)))).largest
    unit = known_unit(largest, network.engine.largest)
    several = len(layout.runs) > 1 or layout.alpha is not None
    parts = [output.with_name(f".{output.name}.{n}.tif") if several else output for n in range(len(layout.runs))]
    passes: tuple[Pass, ...] = ()
    try:
        for run, path in zip(layout.runs, parts, strict=True):
            extras = {} if several else raster.extras
            maker = Maker(path, len(run), raster.dtype, lambda x: _in_type(x * unit, raster.dtype), extras)
            passes = _write_passes(network, Normalized(View(raster, run), 0.0, unit), [maker], on_tile)
        if several:
            _join(parts, raster, layout, output)
    finally:
        for path in parts if several else ():
            path.unlink(missing_ok=True)
    return passes


def _join(parts: list[Path], raster: Raster, layout: Layout, output: Path) -> None:
    """Put restored parts, and the alpha of their source, into one file, band by band."""
    colours = sum(len(run) for run in layout.runs)
    samples = colours + (layout.alpha is not None)
    with contextlib.ExitStack() as stack:
        cache = (2 * BAND * raster.shape[1] + BLOCK**2) * raster.dtype.itemsize * max(map(len, layout.runs))
        rasters = [stack.enter_context(open_windows(path, cache)) for path in parts]
        views = [View(part, tuple(range(part.shape[2]))) for part in rasters]
        if layout.alpha is not None:
            views.append(View(raster, (layout.alpha,)))
        writer = BandWriter(output, (*raster.shape[:2], samples), raster.dtype, colours, raster.extras)
        stack.callback(writer.abandon)
        for bands in zip(*(view.bands() for view in views), strict=True):
            writer.write(np.concatenate(bands, axis=2))
        writer.close()


@dataclass(frozen=True)
class Maker:
    """A file made of a network's output.

    Attributes:
        path: The file.
        samples: Of each pixel.
        dtype: Of the samples.
        make: From the output of a tile to its samples.
        extras: What the file says besides, see `data.metadata`.
    """

    path: Path
    samples: int
    dtype: np.dtype
    make: Callable[[np.ndarray], np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)


def _write_passes(network: Network, given: Normalized, makers: list[Maker], on_tile: OnTile) -> tuple[Pass, ...]:
    """Scan an image and write what the last pass gives."""
    with contextlib.ExitStack() as stack:
        files = _Files((given.shape[0], given.shape[1]), makers, stack)
        passes = network.scan(given, files.receive, on_tile)
        files.finish()
        return passes


class _Files:
    """Results in bands, file by file; a new pass begins them anew."""

    def __init__(self, size: tuple[int, int], makers: list[Maker], stack: contextlib.ExitStack) -> None:
        self.size, self.makers, self.stack = size, makers, stack
        self.number = 0
        self.writers: list[BandWriter] = []
        self.bands: list[np.ndarray] = []

    def receive(self, part: Tile, output: np.ndarray, number: int) -> None:
        if not np.isfinite(output).all():
            raise ArgumentError("model", "must return finite values for finite images", number)
        if number != self.number:
            self._begin(number)
        rows, columns = part.write
        if columns.start == 0:
            height = rows.stop - rows.start
            self.bands = [np.empty((height, self.size[1], maker.samples), maker.dtype) for maker in self.makers]
        for band, maker in zip(self.bands, self.makers, strict=True):
            band[:, columns] = maker.make(output)
        if columns.stop == self.size[1]:
            for writer, band in zip(self.writers, self.bands, strict=True):
                writer.write(band)

    def _begin(self, number: int) -> None:
        for writer in self.writers:
            writer.abandon()
        self.number = number
        self.writers = [
            BandWriter(maker.path, (*self.size, maker.samples), maker.dtype, extras=maker.extras)
            for maker in self.makers
        ]
        for writer in self.writers:
            self.stack.callback(writer.abandon)

    def finish(self) -> None:
        for writer in self.writers:
            writer.close()


def _in_type(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return floats as another type, integers rounded and clipped to their range."""
    if dtype.kind == "f":
        return x.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(x).clip(limits.min, limits.max).astype(dtype)
