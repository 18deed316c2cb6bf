"""Images larger than the memory, from a TIFF to a TIFF."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.atomic import temporary_name
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import open_windows
from dl_techniques.images.raster import BLOCK, BandWriter
from dl_techniques.images.source import Raster
from dl_techniques.inference.memory import WHOLE_REMEDY, tile_bytes
from dl_techniques.inference.network import Network, OnTile, Pass, ignore
from dl_techniques.inference.tiling import Tile
from dl_techniques.tasks.base import Scaling, Statistics, Task
from dl_techniques.tasks.channels import ChannelLayout, plan_channels

BAND = 256  # rows at once while statistics are taken


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


def plan_layout(raster: Raster, wanted: int, restores: bool, source: str) -> ChannelLayout:
    """Adapt the samples of a file to a network as those of whole images are adapted; see `plan_channels`."""
    found = raster.shape[2]
    if found == wanted or found > 4:
        colours = found
    else:
        colours = found - (found % 2 == 0)

    def equal_colours() -> bool:
        return all((band == band[..., :1]).all() for band in View(raster, (0, 1, 2)).bands())

    alpha = colours if found > colours else None
    return plan_channels(colours, wanted, restores, alpha, equal_colours, (str(raster.path), source))


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
class Scaled:
    """An image as a network takes it, float32, window by window."""

    view: View
    scaling: Scaling

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return self.scaling.apply(self.view[window])


def plan_streaming(network: Network, raster_size: tuple[int, int], sample_bytes: int, memory: int) -> int:
    """Return the height and width of the largest tile so that network and bands of the image stay within the memory.

    Raises:
        ArgumentError: Not even the smallest do, or the model takes whole images only.
    """
    smallest = network.smallest_tile
    if smallest is None:
        rule = f"must hold {raster_size[1]}x{raster_size[0]} pixels: {network.engine.source} takes images in one piece"
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
    task: Task,
    source: Path,
    output: Path,
    probabilities: Path | None,
    memory: int,
    on_tile: OnTile = ignore,
) -> tuple[tuple[Pass, ...], tuple[str, ...]]:
    """Apply a model to an image file of any size and write the result band by band.

    A result of several runs, or with alpha, is put together from its parts at the end.

    Args:
        network: The model.
        task: What its outputs mean.
        source: A file of one page that is read in windows.
        output: The decoded result.
        probabilities: Where the network's output goes, if wanted.
        memory: Bytes that arrays and network may take.
        on_tile: Called with the number of tiles done and their total in a pass after each.

    Returns:
        The passes, and what was done to the samples, in words.

    Raises:
        FileError: The file is broken, has other channels than the model, or cannot be read in parts.
        ArgumentError: The memory is too small.
    """
    with open_windows(source, memory // 4) as raster:
        layout = plan_layout(raster, network.engine.channels, task.restores, network.engine.source)
        left = memory - 2 * raster.block_bytes  # what is decoded, before it is in the cache
        row = raster.shape[1] * raster.shape[2] * raster.dtype.itemsize
        tile = plan_streaming(network, raster.shape[:2], row // raster.shape[1], left)
        raster.cache = 2 * tile * row
        every = tuple(dict.fromkeys(sample for run in layout.runs for sample in run))
        scaling = task.scaling(measure_raster(View(raster, every)), network.engine.largest)
        parts = [output]
        if several := len(layout.runs) > 1 or (layout.alpha is not None and task.restores):
            parts = [temporary_name(output) for _ in layout.runs]
        turned = {key: value for key, value in raster.extras.items() if key == "orientation"}
        extras = {} if several else raster.extras if task.restores else turned
        passes: tuple[Pass, ...] = ()
        try:
            for run, path in zip(layout.runs, parts, strict=True):
                makers = [
                    Maker(
                        path,
                        task.result_samples(network.outputs),
                        task.result_dtype(raster.dtype),
                        lambda x: task.decode(x, scaling, raster.dtype),
                        extras,
                    )
                ]
                if probabilities is not None:
                    makers.insert(0, Maker(probabilities, network.outputs, np.dtype("float32"), _floats, turned))
                passes = _write_passes(network, tile, Scaled(View(raster, run), scaling), makers, on_tile)
            if several:
                _join(parts, raster, layout, output)
        finally:
            for path in parts if several else ():
                path.unlink(missing_ok=True)
        return passes, layout.notes


def _floats(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        raise ArgumentError("probabilities", "are not available from an export that returns classes", True)
    return x


def _join(parts: list[Path], raster: Raster, layout: ChannelLayout, output: Path) -> None:
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
    """A file made of a network's output: samples a pixel, their type, and what makes them of a tile's output."""

    path: Path
    samples: int
    dtype: np.dtype
    make: Callable[[np.ndarray], np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)


def _write_passes(network: Network, tile: int, given: Scaled, makers: list[Maker], on_tile: OnTile) -> tuple[Pass, ...]:
    """Scan an image and write what the last pass gives."""
    with contextlib.ExitStack() as stack:
        files = _Files((given.shape[0], given.shape[1]), makers, stack)
        passes = network.scan(given, tile, files.receive, on_tile)
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
