"""A model on one file, and what the page shows of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.display import to_display
from dl_techniques.images.files import read_image, write_image
from dl_techniques.images.formats import format_of
from dl_techniques.inference.pipeline import OnTile
from dl_techniques.inference.predictor import Predictor, fit_channels
from dl_techniques.tasks.denoising.noise_report import NoiseReport, inspect_centre
from dl_techniques.tasks.segmentation.classes import overlay
from dl_techniques.tasks.segmentation.masks import write_masks

SHOWN = 2048  # largest height and width of what is shown, in pixels; the download has all
KINDS = {1: "grey", 3: "RGB"}
WORDS = {"denoise": "denoised", "restore": "restored", "segment": "mask"}


@dataclass(frozen=True)
class Shown:
    """What the page shows of a result.

    Attributes:
        before: The image, `(height, width, 3)`, uint8.
        after: The result, or the classes over the image, of the same size.
        download: The result at full size and depth.
        facts: What to tell, by what it is.
        legend: Colour as `#rrggbb`, name and share of the pixels of each class.
        warnings: Why the result may not be what it seems.
    """

    before: np.ndarray
    after: np.ndarray
    download: Path
    facts: dict[str, str]
    legend: tuple[tuple[str, str, float], ...] = ()
    warnings: tuple[str, ...] = ()


def apply_model(
    predictor: Predictor, source: Path, folder: Path, max_pixels: int, on_tile: OnTile = lambda done, total: None
) -> Shown:
    """Apply a model to an image file and write the result, in its type and depth, into a folder.

    Args:
        predictor: The model.
        source: The file.
        folder: Where the result goes.
        max_pixels: Refuse larger images before they are decoded.
        on_tile: Called with the number of tiles done and their total after each.

    Raises:
        FileError: The file is no image, is too large, or does not fit the model.
    """
    picture = fit_channels(read_image(source, max_pixels, predictor.channels), predictor, str(source))
    start = time.perf_counter()
    try:
        prediction = predictor(picture.pixels, on_tile)
    except ArgumentError as error:
        raise FileError(str(source), str(error)) from error
    seconds = time.perf_counter() - start
    height, width, channels = picture.pixels.shape
    facts = {
        "image": f"{width} x {height} pixels, {KINDS.get(channels, f'{channels} channels')}, {picture.pixels.dtype}",
        **({"on the way": ", ".join(picture.notes)} if picture.notes else {}),
        "time": f"{seconds:.2f} s, {height * width / seconds / 1e6:.2f} megapixels a second",
    }
    task = "restore" if predictor.classes is None else "segment"
    task = predictor.card.task or task
    labels = predictor.classes is not None and predictor.classes.labels
    row = format_of(source)
    deep = labels or picture.pixels.dtype.kind == "f" or (row is not None and "float32" in row.dtypes)
    suffix = ".tif" if deep else ".png"
    download = folder / f"{source.stem}-{WORDS.get(task, 'result')}{suffix}"
    step = -(-max(height, width) // SHOWN)
    small = picture.pixels[::step, ::step]
    if step > 1:
        facts["shown"] = f"every {step}th pixel of every {step}th row; the download has all"
    if predictor.classes is not None:
        mask = prediction.pixels if labels else prediction.pixels[..., 0]
        write_masks(download, [mask], predictor.classes)
        counts = mask.sum(axis=(0, 1)) if labels else np.bincount(mask.ravel(), minlength=predictor.classes.count)
        shares = counts / (height * width)
        named = zip(predictor.classes.colours, predictor.classes.names, shares, strict=True)
        legend = tuple((f"#{bytes(colour).hex()}", name, float(share)) for colour, name, share in named)
        shown = overlay(small, mask[::step, ::step], predictor.classes)
        before = overlay(small, np.zeros_like(mask[::step, ::step]), predictor.classes)
        return Shown(before, shown, download, facts, legend)
    write_image(download, replace(picture, pixels=prediction.pixels))
    report = inspect_centre(picture.pixels, lambda x: predictor(x).pixels)
    facts.update(_describe_noise(report))
    low, high = _range(small)
    before, after = (_colour(to_display(x, low, high)) for x in (small, prediction.pixels[::step, ::step]))
    return Shown(before, after, download, facts, warnings=report.warnings if task == "denoise" else ())


def _describe_noise(report: NoiseReport) -> dict[str, str]:
    gain = {} if report.gain is None else {"estimated gain": f"{report.gain:.1f} dB"}
    return {"noise": f"sigma {report.sigma:.4g}, in the unit of the image", **gain}


def _range(pixels: np.ndarray) -> tuple[float, float]:
    """Return what is shown as black and as white: the whole range of 8 bits, otherwise nearly all of what is there."""
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.nanpercentile(np.where(np.isfinite(pixels), pixels, np.nan), (0.1, 99.9))
    return float(low), float(high)


def _colour(shown: np.ndarray) -> np.ndarray:
    return np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown
