"""A trained model applied to files: masks, probabilities, restored images, and how sure the model is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.card import read_card
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.selection import Model
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import count_images, image_shape, open_image, read_images, write_images
from dl_techniques.images.formats import format_of
from dl_techniques.images.source import Picture
from dl_techniques.inference.denoising import restore_pixels
from dl_techniques.inference.memory import array_bytes, check_whole, network_bytes, parse_memory, plan_tile
from dl_techniques.inference.network import Network, Pass
from dl_techniques.inference.pipeline import (
    FileResult,
    OnTile,
    find_inputs,
    lossless_name,
    plan_outputs,
    process_files,
    summarize,
)
from dl_techniques.inference.settings import GlobalStats, PredictionOptions
from dl_techniques.inference.streaming import stream_file
from dl_techniques.inference.tta import symmetric_moments
from dl_techniques.tasks.segmentation.classes import Classes, overlay
from dl_techniques.tasks.segmentation.masks import write_masks

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Prediction:
    """What a model makes of an image.

    Attributes:
        pixels: Class indices, `(height, width, 1)`, uint8; labels, 1 where each is, `(height, width, labels)`, uint8;
            or the restored image, of the input's type.
        probabilities: Of the classes, `(height, width, outputs)`, float32, of the second alone where there are two; of
            each label; `None` for restored images and for artifacts that return classes.
        uncertainty: Standard deviation over the symmetries of the square, the largest of all channels, `(height, width,
            1)`, float32.
        passes: Over tiles.
    """

    pixels: np.ndarray
    probabilities: np.ndarray | None
    uncertainty: np.ndarray
    passes: tuple[Pass, ...] = ()


class Predictor:
    """A trained model as a function from image to result, whatever its task, in bounded memory.

    Args:
        model: As `load_engine` takes it.
        tta: Average over this many symmetries of the square: 1, 2, 4 or 8.
        global_stats: How V2 models are applied to images of several tiles, `"exact"`, `"tile"` or `"auto"`; see
            `Network`.
        max_memory: What arrays and network may take beside the runtime, such as `"2GB"`; `"auto"` is three quarters of
            what is free.
        tile: Largest height and width that are computed at once, in pixels; by the memory if `None`.
        engine: What computes, as `load_engine` takes it.
        precision: What OpenVINO computes in.

    Raises:
        FileError: The model is broken, or its card does not tell what it is for.
        ArgumentError: There is no such model, or a setting does not fit it.

    Example:
        >>> prediction = Predictor("run/model.keras")(pixels)
    """

    def __init__(
        self,
        model: Model,
        tta: int = 1,
        global_stats: GlobalStats = "auto",
        max_memory: str = "2GB",
        tile: int | None = None,
        engine: EngineName | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.engine = load_engine(model, engine, precision)
        self.card = read_card(self.engine.path)
        self.classes = Classes.from_card(self.card.details, self.engine.source) if self._segments() else None
        self.standard = self.card.standardizes(str(self.engine.path))
        self.tta, self.tile = tta, tile
        self.memory = parse_memory(max_memory)
        patch = self.card.patch
        self.network = Network(self.engine, 512, "tile" if global_stats == "tile" else "exact", patch)
        plan_tile(self.network, self.memory)  # refuse at once what no image will fit

    def _segments(self) -> bool:
        task = self.card.task
        if task == "segment":
            return True
        # A bias-free model that returns what it was given needs no card to be applied.
        if task in ("denoise", "restore") or (task is None and self.engine.use_bias is False):
            return False
        reason = (
            "has no card that tells its task." if task is None else f"is of task {task!r}, which is not known here."
        )
        raise FileError(str(self.engine.path), reason, "Name the model.keras of a run of `convunext train`.")

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return self.engine.channels

    def __call__(self, pixels: np.ndarray, on_tile: OnTile = lambda done, total: None) -> Prediction:
        """Return what the model makes of an image.

        Args:
            pixels: `(height, width, channels)`, integers or floats, as they come from a file.
            on_tile: Called with the number of tiles done and their total after each.

        Raises:
            ArgumentError: The image has other channels than the model, or samples that are not finite where they
                cannot be left as they are.
        """
        self.fit(pixels.shape)
        if self.classes is None:
            restored, deviation = restore_pixels(pixels, self.network, on_tile, self.tta)
            return Prediction(restored, None, deviation.max(axis=2, keepdims=True), self.network.passes)
        output, deviation = symmetric_moments(
            lambda x: self.network.apply(x, on_tile), self.normalized(pixels), self.tta
        )
        if output.dtype.kind != "f":
            return Prediction(output.astype("uint8"), None, np.zeros(output.shape, "float32"))
        if not np.isfinite(output).all():
            raise ArgumentError("model", "must return finite values for finite images", self.engine.source)
        indices, _ = self.classes.decide(output)
        uncertainty = deviation.max(axis=2, keepdims=True)
        pixels = indices if self.classes.labels else indices[..., None]
        return Prediction(pixels, output, uncertainty, self.network.passes)

    def _arrays(self, shape: tuple[int, ...]) -> int:
        colours = self.classes is None and self.channels == 1  # restored one by one
        return array_bytes(self.network, (shape[0], shape[1]), self.tta, shape[2] if colours else 1)

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Return whether an image of `(height, width, channels)`, its results and one tile stay within the memory."""
        return self._arrays(shape) + network_bytes(self.network, (shape[0], shape[1])) <= self.memory

    def fit(self, shape: tuple[int, ...]) -> None:
        """Choose tiles so that an image of `(height, width, channels)` and the network stay within the memory.

        Raises:
            ArgumentError: They cannot.
        """
        arrays, size = self._arrays(shape), (shape[0], shape[1])
        check_whole(self.network, self.memory - arrays, size)
        if not self.holds(shape):
            rule = f"must hold arrays of {arrays / 1e6:.0f} MB for {size[1]}x{size[0]} pixels"
            raise ArgumentError("max_memory", rule, f"{self.memory / 1e6:.0f}MB", "Raise --max-memory.")
        if not self.network.tiled_by_patch:
            self.network.tile = self.tile or plan_tile(self.network, self.memory - arrays, max(size))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image as the model wants it, float32."""
        if pixels.shape[2] != self.channels:
            raise ArgumentError("pixels", f"must have {self.channels} channels for {self.engine.source}", pixels.shape)
        self.engine.check_size(pixels)
        if bad := int(np.size(pixels) - np.count_nonzero(np.isfinite(pixels))):
            raise ArgumentError("pixels", "must be finite; NaN or infinite samples", bad)
        if (largest := float(np.abs(pixels).max())) > float(np.finfo("float32").max):
            raise ArgumentError("pixels", "must have magnitudes that float32 holds", largest)
        return standardize(pixels) if self.standard else pixels.astype("float32")


@dataclass(frozen=True)
class PredictionReport:
    """What is said of a file that is done.

    Attributes:
        notes: What was converted on the way.
        passes: Over tiles, of the last page.
    """

    notes: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = field(default=())


def predict_files(
    model: Model, inputs: Sequence[str], options: PredictionOptions, console: Console
) -> list[FileResult[PredictionReport]]:
    """Apply a model to files; one that is refused is named and the others go on, one that is done is left as it is.

    Args:
        model: As `Predictor` takes it.
        inputs: Files, folders and patterns.
        options: Settings.
        console: Where to tell what happens.

    Raises:
        FileError: The model is broken or no input exists, two files would become one, or nothing can be written.
        ArgumentError: A setting does not fit the model.
    """
    predictor = Predictor(model, *predictor_settings(options))
    check_options(predictor, options)
    found = find_inputs(inputs)

    def work(source: Path, output: Path, on_tile: OnTile) -> PredictionReport:
        return predict_file(predictor, source, output, options, on_tile)

    pairs = plan_outputs(
        found, options.output, options.overwrite, lambda source: result_name(predictor, source), resumes=True
    )
    results = process_files(pairs, work, describe, console, options.overwrite, found.lost)
    console.print(summarize(results))
    return results


def predictor_settings(options: PredictionOptions) -> tuple:
    """Return what `Predictor` takes after the model."""
    return (
        options.tta,
        options.global_stats,
        options.max_memory,
        options.tile,
        options.engine,
        options.precision,
    )


def result_name(predictor: Predictor, source: Path) -> str:
    """Return the name of a file's result, in a folder."""
    if predictor.classes is None:
        return lossless_name(source)
    pages = predictor.classes.labels or count_images(source) > 1 or streams(predictor, source)
    return f"{source.stem}.tif" if pages else f"{source.stem}.png"


def check_options(predictor: Predictor, options: PredictionOptions) -> None:
    """Raise `ArgumentError` for settings that do not fit the model."""
    if options.uncertainty and options.tta == 1:
        raise ArgumentError("uncertainty", "needs --tta 2, 4 or 8, whose disagreement it is", True)
    for flag in ("probabilities", "overlay"):
        if getattr(options, flag) and predictor.classes is None:
            raise ArgumentError(flag, f"needs a segmenter, which {predictor.engine.source} is not", True)


def predict_file(
    predictor: Predictor, source: Path, output: Path, options: PredictionOptions, on_tile: OnTile
) -> PredictionReport:
    """Write what a model makes of a file, whole or not at all.

    Raises:
        FileError: It is refused.
    """
    if streams(predictor, source):
        return _stream(predictor, source, output, options, on_tile)
    _check_memory(predictor, source)
    pictures, predictions = [], []
    for number, picture in enumerate(read_images(source, options.max_pixels, predictor.channels), start=1):
        page = str(source) if number == 1 else f"{source}, page {number}"
        picture = fit_channels(picture, predictor, page)
        try:
            predictions.append(predictor(picture.pixels, on_tile))
        except ArgumentError as error:
            raise FileError(page, str(error)) from error
        pictures.append(picture)
    _write(predictor, output, pictures, predictions, options)
    notes = tuple(dict.fromkeys(note for picture in pictures for note in picture.notes))
    if predictor.engine.model is None and predictor.engine.tiling is None:
        notes += ("the card does not tell the network's memory: --max-memory bounded images and results alone",)
    return PredictionReport(notes, predictions[-1].passes)


def streams(predictor: Predictor, source: Path) -> bool:
    """Return whether a file is too large for the memory and of a format that is read and written in parts."""
    try:
        with open_image(source) as file:
            return not predictor.holds(file.shape()) and file.can_read_windows
    except FileError:
        return False  # raised again when it is read


def _stream(
    predictor: Predictor, source: Path, output: Path, options: PredictionOptions, on_tile: OnTile
) -> PredictionReport:
    height, width, _ = image_shape(source)
    wanted = [f"--{name}" for name in ("overlay", "uncertainty") if getattr(options, name)]
    if wanted or options.tta > 1:
        reason = f"has {width}x{height} pixels, too many for {', '.join(wanted or ['--tta'])} within the memory."
        raise FileError(str(source), reason, "Leave it out, or raise --max-memory.")
    row = format_of(output)
    if row is None or not row.windows:
        raise FileError(str(output), f"cannot be written in parts, which {width}x{height} need.", "Choose .tif.")
    probabilities = _beside(output, "probabilities.tif") if options.probabilities else None
    try:
        passes, notes = stream_file(
            predictor.network,
            predictor.classes,
            predictor.standard,
            source,
            output,
            probabilities,
            predictor.memory,
            on_tile,
        )
    except ArgumentError as error:
        raise FileError(str(source), str(error)) from error
    return PredictionReport(("read and written in parts", *notes), passes)


def _check_memory(predictor: Predictor, source: Path) -> None:
    """Refuse what would not fit before it is decoded."""
    try:
        predictor.fit(image_shape(source))
    except ArgumentError as error:
        raise FileError(str(source), str(error)) from error


def fit_channels(picture: Picture, predictor: Predictor, source: str) -> Picture:
    """Return a picture with the channels of a segmenter, where nothing is lost by it.

    Raises:
        FileError: Something would be.
    """
    if predictor.classes is None:
        return picture
    pixels, notes, wanted = picture.pixels, list(picture.notes), predictor.channels
    if picture.alpha is not None:
        notes.append("alpha left out")
    if pixels.shape[2] == 1 and wanted == 3:
        pixels = np.repeat(pixels, 3, axis=2)
        notes.append("grey taken as RGB")
    elif pixels.shape[2] == 3 and wanted == 1 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
        notes.append("RGB of equal colours taken as grey")
    elif pixels.shape[2] != wanted:
        reason = f"has {pixels.shape[2]} channels; {predictor.engine.source} takes {wanted}."
        raise FileError(source, reason, "Convert it, or name another model.")
    return replace(picture, pixels=pixels, notes=tuple(notes))


def _write(
    predictor: Predictor,
    output: Path,
    pictures: list[Picture],
    predictions: list[Prediction],
    options: PredictionOptions,
) -> None:
    """Write what was asked for; the result itself comes last, so that where it lies nothing is missing."""
    if options.uncertainty:
        write_images(_beside(output, "uncertainty.tif"), [Picture(p.uncertainty) for p in predictions])
    if predictor.classes is None:
        results = [replace(picture, pixels=p.pixels) for picture, p in zip(pictures, predictions, strict=True)]
        write_images(output, results)
        return
    if options.probabilities:
        if any(p.probabilities is None for p in predictions):
            raise FileError(predictor.engine.source, "returns classes, no probabilities.", "Leave --probabilities out.")
        pages = [Picture(p.probabilities) for p in predictions if p.probabilities is not None]
        write_images(_beside(output, "probabilities.tif"), pages)
    masks = [p.pixels if predictor.classes.labels else p.pixels[..., 0] for p in predictions]
    if options.overlay:
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True), start=1):
            page = f"-{number}" if len(masks) > 1 else ""
            write_images(
                _beside(output, f"overlay{page}.png"), [Picture(overlay(picture.pixels, mask, predictor.classes))]
            )
    write_masks(output, masks, predictor.classes)


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(f"{output.stem}-{ending}")


def describe(report: PredictionReport) -> list[str]:
    """Return what can be said of a file that is done."""
    last = report.passes[-1] if report.passes else None
    said = ""
    if last is not None and last.tiles > 1:
        said = f"{last.tiles} tiles"
        if last.change is not None:
            said += f", {len(report.passes)} passes, whole-image statistics moved by {last.change:.0e} in the last"
    return [", ".join(filter(None, (said, *report.notes)))]
