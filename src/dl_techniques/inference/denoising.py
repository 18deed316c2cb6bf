"""Noise taken out of images, in whatever unit, type and size they come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.data.files import Picture, find_images, read_image, write_image
from dl_techniques.data.pictures import contact_sheet, to_display
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError
from dl_techniques.inference.quality import NoiseReport, inspect_noise
from dl_techniques.inference.settings import DenoisingOptions
from dl_techniques.inference.symmetries import symmetric_moments
from dl_techniques.inference.tiling import apply_tiled

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.inference.engines import Engine

LOSSLESS = {".jpg": ".png", ".jpeg": ".png", ".bmp": ".png"}  # what a result is saved as in a folder
INSPECTED = 768  # height and width of the centre on which noise is judged, in pixels
COMPARED = 512  # and of the one that is shown before and after


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
    channels = pixels.shape[-1]
    if engine.channels not in (1, channels):
        raise ArgumentError("pixels", f"must have {engine.channels} channels for {engine.source}", pixels.shape)
    if engine.fit(pixels.shape[:2]) != pixels.shape[:2]:
        rule = f"must be of {engine.size[0]}x{engine.size[1]} pixels for {engine.source}"
        raise ArgumentError("pixels", rule, pixels.shape)
    finite = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
    if not finite.any():
        raise ArgumentError("pixels", "must have a finite sample", pixels.shape)
    x = pixels if finite.all() else np.where(finite, pixels, np.median(pixels[finite]))
    unit = _unit(float(np.abs(x).max()), engine.largest)
    x = (x / unit).astype("float32")
    planes = [x] if engine.channels == channels else [x[..., c : c + 1] for c in range(channels)]
    rounds = itertools.count()

    def apply(plane: np.ndarray) -> np.ndarray:
        before = next(rounds)
        return _apply(
            plane, engine, tile, lambda done, total: on_tile(before * total + done, len(planes) * tta * total)
        )

    outputs = [symmetric_moments(apply, plane, tta)[0] for plane in planes]
    result = np.concatenate(outputs, axis=-1).astype("float64") * unit
    if not np.isfinite(result).all():
        raise ArgumentError("engine", "must return finite values for finite images", engine.source)
    if pixels.dtype.kind == "f":
        return np.where(finite, result, pixels).astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return np.rint(result).clip(limits.min, limits.max).astype(pixels.dtype)


def _unit(peak: float, largest: float | None) -> float:
    """Return 1 for magnitudes that the model knows, otherwise a power of two that brings them there.

    It knows those whose squares float32 can hold; where 8-bit integers were calibrated, those next to the largest.
    """
    if peak == 0 or (largest is None and 1e-12 < peak < 1e12):
        return 1.0
    return float(2.0 ** (np.floor(np.log2(peak)) if largest is None else np.rint(np.log2(peak / largest))))


def _apply(x: np.ndarray, engine: Engine, tile: int, on_tile: Callable[[int, int], object]) -> np.ndarray:
    if engine.halo is None:  # a whole-image statistic, or nothing is known
        tile = max(*x.shape[:2], tile)
    return apply_tiled(lambda crop: engine.function(crop[None])[0], x, tile, engine.halo or 0, engine.multiple, on_tile)


@dataclass(frozen=True)
class DenoisingResult:
    """What became of one file.

    Attributes:
        source: The file.
        output: Where the result lies, `None` if the file was refused.
        report: Noise and gain, `None` if not inspected or refused.
        error: Why it was refused, empty if it was not.
        seconds: Time taken.
    """

    source: Path
    output: Path | None
    report: NoiseReport | None
    error: str
    seconds: float


def denoise_files(inputs: Sequence[Path], options: DenoisingOptions, console: Console) -> list[DenoisingResult]:
    """Denoise image files; one that is refused is named and the others go on.

    Args:
        inputs: Files and folders.
        options: Settings.
        console: Where to tell what happens.

    Raises:
        FileError: An input does not exist, an output exists already, or nothing can be written.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    pairs = _plan_outputs(find_images(inputs), options, single=len(inputs) == 1 and not Path(inputs[0]).is_dir())
    engines = _Engines(options.model)
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        overall = progress.add_task("images", total=len(pairs))
        for source, output in pairs:
            task = progress.add_task("tiles", total=None)
            start = time.perf_counter()
            try:
                report = _denoise_file(
                    source,
                    output,
                    engines,
                    options,
                    lambda done, total, task=task: progress.update(task, completed=done, total=total),
                )
                result = DenoisingResult(source, output, report, "", time.perf_counter() - start)
            except ConvUNextError as error:
                result = DenoisingResult(source, None, None, str(error), time.perf_counter() - start)
            progress.remove_task(task)
            progress.advance(overall)
            for line in _describe(result):
                console.print(line, markup=False)
            results.append(result)
    return results


class _Engines:
    """The model for images of one or three channels, loaded when first needed."""

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.loaded: dict[str, Engine] = {}

    def of(self, channels: int) -> Engine:
        from dl_techniques.inference.engines import load_engine
        from dl_techniques.models.convunext.presets import shipped_presets

        name = self.model
        if name is None:
            wanted = "denoise-gray" if channels == 1 else "denoise-color"
            name = wanted if wanted in shipped_presets() else "denoise-gray"
        if name not in self.loaded:
            self.loaded[name] = load_engine(name)
        return self.loaded[name]


def _plan_outputs(sources: list[Path], options: DenoisingOptions, single: bool) -> list[tuple[Path, Path]]:
    output = options.output
    if single and output.suffix and not output.is_dir():
        pairs = [(sources[0], output)]
        folder = output.parent
    else:
        folder = output
        pairs = [(path, folder / f"{path.stem}{LOSSLESS.get(path.suffix.lower(), path.suffix)}") for path in sources]
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        if target in taken:
            reason = f"and {source.name} would both become {target.name}."
            raise FileError(str(taken[target]), reason, "Give them different names or folders.")
        taken[target] = source
        if target.exists() and (not options.overwrite or target.resolve() == source.resolve()):
            remedy = "Choose another --output" + ("." if options.overwrite else ", or add --overwrite.")
            raise FileError(str(target), "exists already.", remedy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(str(folder), f"cannot be written: {error.strerror}.", "Choose another --output.") from error
    return pairs


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
    noisy = _centre(picture.pixels, INSPECTED).astype("float32")
    noisy = np.where(np.isfinite(noisy), noisy, 0)

    def function(x: np.ndarray) -> np.ndarray:
        return denoise_pixels(x, engine, options.tile, tta=options.tta)

    return inspect_noise(noisy, function(noisy), function)


def _centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the centre, beginning at multiples of 8 so that the blocks of a JPEG stay where they are."""
    top, left = (max(extent - size, 0) // 2 // 8 * 8 for extent in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _comparison(noisy: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """Return the centre before, after, and their difference about grey, side by side, uint8."""
    before, after = (np.nan_to_num(_centre(x, COMPARED).astype("float64")) for x in (noisy, denoised))
    low, high = np.percentile(before, (0.1, 99.9))
    removed = before - after
    spread = 4 * float(removed.std())
    row = [
        ("before", to_display(before, low, high)),
        ("after", to_display(after, low, high)),
        ("removed", to_display(removed, -spread, spread)),
    ]
    return contact_sheet([row])


def _describe(result: DenoisingResult) -> list[str]:
    if result.error:
        return [f"refused  {result.error}"]
    line = f"{result.source} -> {result.output}  {result.seconds:.1f} s"
    if result.report is not None:
        line += f"  noise sigma {result.report.sigma:.4g}"
        if result.report.gain is not None:
            line += f", estimated gain {result.report.gain:.1f} dB"
    return [line, *(f"  warning: {warning}" for warning in (result.report.warnings if result.report else ()))]
