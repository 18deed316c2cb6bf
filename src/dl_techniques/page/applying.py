"""A model on one file, and what the page shows of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import read_image
from dl_techniques.images.formats import format_of
from dl_techniques.images.source import reading_errors
from dl_techniques.inference.files import fit_channels
from dl_techniques.inference.pipeline import OnTile
from dl_techniques.inference.predictor import Predictor

SHOWN = 2048  # largest height and width of what is shown, in pixels; the download has all
KINDS = {1: "grey", 3: "RGB"}


@dataclass(frozen=True)
class Shown:
    """What the page shows of a result: pictures of one size, the download, facts, legend and warnings."""

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

    Raises:
        FileError: The file is no image, is too large, or does not fit the model.
    """
    with reading_errors(source, "processed", "Leave it out."):
        return _apply(predictor, source, folder, max_pixels, on_tile)


def _apply(predictor: Predictor, source: Path, folder: Path, max_pixels: int, on_tile: OnTile) -> Shown:
    picture = fit_channels(read_image(source, max_pixels, predictor.channels), predictor, str(source))
    task, pixels = predictor.task, picture.pixels
    start = time.perf_counter()
    try:
        prediction = predictor(pixels, on_tile, picture.valid)
    except ArgumentError as error:
        raise FileError(str(source), str(error)) from error
    seconds = time.perf_counter() - start
    height, width, channels = pixels.shape
    facts = {
        "image": f"{width} x {height} pixels, {KINDS.get(channels, f'{channels} channels')}, {pixels.dtype}",
        **({"converted": ", ".join(picture.notes)} if picture.notes else {}),
        "time": f"{seconds:.2f} s, {height * width / seconds / 1e6:.2f} megapixels a second",
    }
    row = format_of(source)
    deep = pixels.dtype.kind == "f" or (row is not None and "float32" in row.dtypes)
    suffix = task.result_suffixes(Path("image.tif" if deep else "image.png"))[-1 if deep else 0]
    download = folder / f"{source.stem}-{task.noun}{suffix}"
    task.write(download, [(picture, prediction)], 1, frozenset())
    step = -(-max(height, width) // SHOWN)
    if step > 1:
        facts["shown"] = f"every {step}th pixel of every {step}th row; the download has all"
    remarks = task.inspect(pixels, lambda x: predictor(x).pixels)
    preview = task.preview(pixels[::step, ::step], prediction.pixels[::step, ::step])
    return Shown(preview.before, preview.after, download, {**facts, **remarks.facts}, preview.legend, remarks.warnings)
