"""Images larger than the memory, from a TIFF to a TIFF."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl_techniques.data.masks import Classes
from dl_techniques.data.raster import BandWriter, TiffRaster
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.inference.batch import OnTile
from dl_techniques.inference.denoising import known_unit
from dl_techniques.inference.memory import WHOLE_REMEDY, bytes_per_pixel
from dl_techniques.inference.network import Network, Pass
from dl_techniques.inference.tiling import Tile

BAND = 256  # rows at once while statistics are taken


@dataclass(frozen=True)
class Statistics:
    """Of all samples of an image: mean, standard deviation, and the largest magnitude."""

    mean: float
    deviation: float
    largest: float


def measure_raster(raster: TiffRaster) -> Statistics:
    """Return the statistics of an image, read twice.

    Raises:
        FileError: It holds samples that are not finite.
    """
    bands = [slice(top, min(top + BAND, raster.shape[0])) for top in range(0, raster.shape[0], BAND)]
    columns, count = slice(0, raster.shape[1]), int(np.prod(raster.shape))
    total, low, high, bad = 0.0, np.inf, -np.inf, 0
    for rows in bands:
        band = raster[rows, columns]
        if raster.dtype.kind == "f":
            bad += int(band.size - np.count_nonzero(np.isfinite(band)))
        total += float(band.sum(dtype="float64"))
        low, high = min(low, float(band.min())), max(high, float(band.max()))
    if bad:
        raise FileError(str(raster.path), f"holds {bad} samples that are NaN or infinite.", "Repair it.")
    mean = low if low == high else total / count
    squares = sum(float(np.square(raster[rows, columns] - mean).sum()) for rows in bands)
    return Statistics(mean, 0.0 if low == high else float(np.sqrt(squares / count)), max(abs(low), abs(high)))


@dataclass(frozen=True)
class Normalized:
    """A raster as a network wants it: `scale · (x − shift)`, float32, window by window."""

    raster: TiffRaster
    shift: float
    divisor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raster.shape

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return ((self.raster[window].astype("float64") - self.shift) / self.divisor).astype("float32")


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
        return bytes_per_pixel(network) * tile**2 + bands

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
) -> tuple[Pass, ...]:
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

    Raises:
        FileError: The file is broken, has other channels than the model, or cannot be read in parts.
        ArgumentError: The memory is too small.
    """
    with TiffRaster(source, memory // 4) as raster:
        if raster.shape[2] != network.engine.channels:
            reason = f"has {raster.shape[2]} channels; {network.engine.source} takes {network.engine.channels}."
            raise FileError(str(source), reason, "Convert it, or name another model.")
        network.tile = plan_streaming(network, raster.shape[:2], raster.shape[2] * raster.dtype.itemsize, memory)
        raster.cache = 2 * network.tile * raster.shape[1] * raster.shape[2] * raster.dtype.itemsize
        found = measure_raster(raster)
        if standard:
            view = Normalized(raster, found.mean, found.deviation or 1.0)
        else:
            view = Normalized(raster, 0.0, 1.0 if classes else known_unit(found.largest, network.engine.largest))
        size = raster.shape[:2]
        makers: list[tuple[Path, int, np.dtype, Callable[[np.ndarray], np.ndarray]]] = []
        channels = network.outputs
        if classes is None:
            makers.append((output, channels, raster.dtype, lambda x: _in_type(x * view.divisor, raster.dtype)))
        else:
            if probabilities is not None:
                makers.append((probabilities, channels, np.dtype("float32"), lambda x: x))
            samples = classes.count if classes.labels else 1
            makers.append(
                (output, samples, np.dtype("uint8"), lambda x: classes.decide(x)[0].reshape(*x.shape[:2], samples))
            )
        return _write_passes(network, view, size, makers, on_tile)


def _write_passes(network: Network, view: Normalized, size: tuple[int, int], makers, on_tile: OnTile):
    """Scan an image and write what the last pass gives."""
    with contextlib.ExitStack() as stack:
        files = _Files(size, makers, stack)
        passes = network.scan(view, files.receive, on_tile)
        files.finish()
        return passes


class _Files:
    """Results in bands, file by file; a new pass begins them anew."""

    def __init__(self, size: tuple[int, int], makers, stack: contextlib.ExitStack) -> None:
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
            self.bands = [np.empty((height, self.size[1], samples), dtype) for _, samples, dtype, _ in self.makers]
        for band, (_, _, _, make) in zip(self.bands, self.makers, strict=True):
            band[:, columns] = make(output)
        if columns.stop == self.size[1]:
            for writer, band in zip(self.writers, self.bands, strict=True):
                writer.write(band)

    def _begin(self, number: int) -> None:
        for writer in self.writers:
            writer.abandon()
        self.number = number
        self.writers = [BandWriter(path, (*self.size, samples), dtype) for path, samples, dtype, _ in self.makers]
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
