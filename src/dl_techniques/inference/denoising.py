"""Noise taken out of images, in whatever unit, type and size they come."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.engines.engine import Engine
from dl_techniques.engines.selection import EngineSelection
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.display import centre, contact_sheet, to_display
from dl_techniques.images.files import Picture, image_shape, read_image, write_image
from dl_techniques.inference.network import Network
from dl_techniques.inference.pipeline import FileResult, OnTile, find_inputs, lossless_name, plan_outputs, process_files
from dl_techniques.inference.settings import DenoisingOptions
from dl_techniques.inference.tta import symmetric_moments
from dl_techniques.tasks.denoising.noise_report import NoiseReport, inspect_centre

if TYPE_CHECKING:
    from rich.console import Console

COMPARED = 512  # height and width of the centre that is shown before and after, in pixels


def denoise_pixels(
    pixels: np.ndarray,
    engine: Engine,
    tile: int = 512,
    on_tile: Callable[[int, int], object] = lambda done, total: None,
    tta: int = 1,
) -> np.ndarray:
    """Return an image without its noise, in its own type and unit.

    Intensities are not normalized: the model is scale-equivariant. Integers are rounded and clipped to their type's
    range; floats are not. Samples that are NaN or infinite stay so and count as the median of the others. A model of
    one channel takes the colours one by one.

    Args:
        pixels: `(height, width, channels)`, 1 or 3 channels, integers or floats.
        engine: The model.
        tile: Larger images are computed in tiles, with exactly the result of the whole.
        on_tile: Called with the number of tiles done and their total after each.
        tta: Symmetries of the image over which results are averaged: 1, 2, 4 or 8.

    Raises:
        ArgumentError: The model does not fit the channels, or the image has no finite sample.
    """
    return restore_pixels(pixels, Network(engine, tile), on_tile, tta)[0]


def restore_pixels(
    pixels: np.ndarray, network: Network, on_tile: OnTile = lambda done, total: None, tta: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `denoise_pixels` does, and the standard deviation over the symmetries, float32, in the same unit."""
    engine, channels = network.engine, pixels.shape[-1]
    if engine.channels not in (1, channels):
        raise ArgumentError("pixels", f"must have {engine.channels} channels for {engine.source}", pixels.shape)
    engine.check_size(pixels)
    finite = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
    if not finite.any():
        raise ArgumentError("pixels", "must have a finite sample", pixels.shape)
    x = pixels if finite.all() else np.where(finite, pixels, np.median(pixels[finite]))
    unit = known_unit(float(np.abs(x).max()), engine.largest)
    x = (x / unit).astype("float32")
    planes = [x] if engine.channels == channels else [x[..., c : c + 1] for c in range(channels)]
    rounds = itertools.count()

    def apply(plane: np.ndarray) -> np.ndarray:
        before = next(rounds)
        return network.apply(plane, lambda done, total: on_tile(before * total + done, len(planes) * tta * total))

    means, deviations = zip(*(symmetric_moments(apply, plane, tta) for plane in planes), strict=True)
    result = np.concatenate(means, axis=-1).astype("float64") * unit
    deviation = (np.concatenate(deviations, axis=-1) * unit).astype("float32")
    if not np.isfinite(result).all():
        raise ArgumentError("engine", "must return finite values for finite images", engine.source)
    if pixels.dtype.kind == "f":
        kept = np.where(finite, result, pixels) if result.shape == pixels.shape else result
        return kept.astype(pixels.dtype), deviation
    limits = np.iinfo(pixels.dtype)
    return np.rint(result).clip(limits.min, limits.max).astype(pixels.dtype), deviation


def known_unit(peak: float, largest: float | None) -> float:
    """Return 1 for magnitudes that the model knows, otherwise a power of two that brings them there.

    It knows those whose squares float32 can hold; where 8-bit integers were calibrated, those next to the largest.
    """
    if peak == 0 or (largest is None and 1e-12 < peak < 1e12):
        return 1.0
    return float(2.0 ** (np.floor(np.log2(peak)) if largest is None else np.rint(np.log2(peak / largest))))


DenoisingResult = FileResult[NoiseReport | None]


def presets_for(inputs: Sequence[str]) -> list[str]:
    """Return the names of the presets that image files take, by their heads; of files that cannot be read, none.

    Raises:
        FileError: No input is there.
    """
    names: list[str] = []
    for path in find_inputs(inputs).files:
        try:
            samples = image_shape(path)[2]
        except FileError:
            continue  # said when it is its turn
        name = _preset_for(samples - (samples % 2 == 0))  # alpha, or the fourth ink
        names += [] if name in names else [name]
        if len(names) == 2:
            break
    return names


def _preset_for(channels: int) -> str:
    from dl_techniques.models.convunext.presets import shipped_presets

    wanted = "denoise-gray" if channels == 1 else "denoise-color"
    return wanted if wanted in shipped_presets() else "denoise-gray"


def denoise_files(
    inputs: Sequence[str | os.PathLike],
    options: DenoisingOptions,
    console: Console,
    choices: Mapping[str, EngineSelection] | None = None,
) -> list[DenoisingResult]:
    """Denoise image files; one that is refused is named and the others go on.

    Args:
        inputs: Files, folders and patterns.
        options: Settings.
        console: Where to tell what happens.
        choices: What runs the models of these names, where that is settled already.

    Raises:
        FileError: No input exists, an output exists already, or nothing can be written.
    """
    found = find_inputs([os.fspath(path) for path in inputs])
    engines = _Engines(options, choices or {})
    pairs = plan_outputs(found, options.output, options.overwrite, lossless_name)

    def work(source: Path, output: Path, on_tile: OnTile) -> NoiseReport | None:
        return _denoise_file(source, output, engines, options, on_tile)

    return process_files(pairs, work, _describe, console, options.overwrite, found.lost)


class _Engines:
    """The model for images of one or three channels; what is not named is loaded when first needed."""

    def __init__(self, options: DenoisingOptions, choices: Mapping[str, EngineSelection]) -> None:
        self.options, self.choices = options, choices
        self.loaded: dict[str, Engine] = {}
        for name in (options.model,) if options.model else choices:
            self._load(name)  # what is broken is no fault of an image

    def of(self, channels: int) -> Engine:
        return self._load(self.options.model or _preset_for(channels))

    def _load(self, name: str) -> Engine:
        from dl_techniques.engines.loading import load_engine

        if name not in self.loaded:
            model = self.choices.get(name, name)
            self.loaded[name] = load_engine(model, self.options.engine, self.options.precision)
        return self.loaded[name]


def _denoise_file(
    source: Path, output: Path, engines: _Engines, options: DenoisingOptions, on_tile: Callable[[int, int], object]
) -> NoiseReport | None:
    picture = read_image(source, options.max_pixels)
    engine = engines.of(picture.pixels.shape[2])
    try:
        denoised = denoise_pixels(picture.pixels, engine, options.tile, on_tile, options.tta)
    except ArgumentError as error:
        raise FileError(str(source), str(error)) from error
    write_image(output, replace(picture, pixels=denoised))
    if options.compare:
        sheet = _comparison(picture.pixels, denoised)
        write_image(output.with_name(f"{output.stem}-compare.png"), Picture(sheet))
    if not options.inspect:
        return None
    return inspect_centre(picture.pixels, lambda x: denoise_pixels(x, engine, options.tile, tta=options.tta))


def _comparison(noisy: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """Return the centre before, after, and their difference about grey, side by side, uint8."""
    before, after = (np.nan_to_num(centre(x, COMPARED).astype("float64")) for x in (noisy, denoised))
    low, high = np.percentile(before, (0.1, 99.9))
    removed = before - after
    spread = 4 * float(removed.std())
    row = [
        ("before", to_display(before, low, high)),
        ("after", to_display(after, low, high)),
        ("removed", to_display(removed, -spread, spread)),
    ]
    return contact_sheet([row])


def _describe(report: NoiseReport | None) -> list[str]:
    if report is None:
        return []
    gain = "" if report.gain is None else f", estimated gain {report.gain:.1f} dB"
    return [f"noise sigma {report.sigma:.4g}{gain}", *(f"warning: {warning}" for warning in report.warnings)]
