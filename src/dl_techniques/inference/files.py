"""A predictor on files: masks, probabilities, restored images, and how sure the model is of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.engines.selection import Model
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import open_image, print_left_out
from dl_techniques.images.formats import first_suffix, format_of
from dl_techniques.images.metadata import lost_extras
from dl_techniques.images.source import ImageSource, Picture, reading_errors
from dl_techniques.images.tiff import page_writer
from dl_techniques.inference.network import OnTile, Pass
from dl_techniques.inference.pipeline import FileResult, find_inputs, plan_outputs, process_files, summarize
from dl_techniques.inference.predictor import Predictor, fill
from dl_techniques.inference.settings import PredictionOptions
from dl_techniques.inference.streaming import stream_file
from dl_techniques.tasks.base import Page, Remarks
from dl_techniques.tasks.channels import plan_channels

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class PredictionReport:
    """Notes on what was converted, the passes over tiles of the last page, and remarks on the result."""

    notes: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = ()
    remarks: Remarks = Remarks()


PredictorFor = Callable[[Path], Predictor]  # which predictor a file needs


def create_predictor(model: Model, options: PredictionOptions, task: str | None = None) -> Predictor:
    """Return the predictor that options ask for.

    Raises:
        ArgumentError: An option does not fit the model.
    """
    predictor = Predictor(model, task=task, **predictor_settings(options))
    check_options(predictor, options)
    return predictor


def predictor_settings(options: PredictionOptions) -> dict[str, Any]:
    """Return the arguments of `Predictor` that options state."""
    names = ("tta", "global_stats", "max_memory", "tile", "engine", "precision", "trust")
    return {name: getattr(options, name) for name in names}


def check_options(predictor: Predictor, options: PredictionOptions) -> None:
    """Raise `ArgumentError` for options that do not fit the model."""
    if options.uncertainty and options.tta == 1:
        raise ArgumentError("uncertainty", "needs --tta 2, 4 or 8: it is the deviation over these symmetries", True)
    predictor.task.check_extras(options.extras, predictor.engine.source)


def predict_files(
    predictor_for: PredictorFor, inputs: Sequence[str], options: PredictionOptions, console: Console
) -> list[FileResult[PredictionReport]]:
    """Apply models to files; one that is refused is named and the others go on, one that is done is left as it is.

    Raises:
        FileError: No input exists, two files would become one, or nothing can be written.
    """
    found = find_inputs(inputs)

    def work(source: Path, output: Path, on_tile: OnTile) -> PredictionReport:
        return predict_file(predictor_for(source), source, output, options, on_tile)

    pairs = plan_outputs(
        found,
        options.output,
        options.overwrite,
        lambda source: result_name(predictor_for(source), source),
        options.resumes,
    )
    print_left_out(console, *inputs)
    results = process_files(pairs, work, describe, console, options.overwrite, found.not_found)
    console.print(summarize(results))
    return results


def possible_names(predictor: Predictor, source: Path) -> list[str]:
    """Return the names that the result of a file may have, before the file is opened."""
    return [f"{source.stem}{suffix}" for suffix in predictor.task.result_suffixes(source)]


def result_name(predictor: Predictor, source: Path) -> str:
    """Return the name of a file's result, in a folder."""
    names = possible_names(predictor, source)
    if len(names) > 1:
        try:
            with open_image(source) as file:
                file.channels_apart = predictor.channels == 1
                return names[-1] if file.count > 1 or reads_in_parts(predictor, file) else names[0]
        except FileError:
            pass  # raised again when it is read
    return names[0]


def predict_file(
    predictor: Predictor, source: Path, output: Path, options: PredictionOptions, on_tile: OnTile
) -> PredictionReport:
    """Write what a model makes of a file, page by page, whole or not at all.

    Raises:
        FileError: It is refused.
    """
    with reading_errors(source, "processed", "Leave it out."), open_image(source, options.max_pixels) as file:
        file.channels_apart = predictor.channels == 1
        try:
            if reads_in_parts(predictor, file):
                return _stream(predictor, file, output, options, on_tile)
            predictor.plan(file.shape())  # refuses before anything is decoded
        except ArgumentError as error:
            raise FileError(str(source), str(error)) from error
        pages = _Pages(predictor, file, options, output, on_tile)
        predictor.task.write(output, pages, file.count, options.extras)
        remarks = Remarks()
        if (first := pages.first) is not None:
            pixels = first.pixels if first.valid is None else fill(first.pixels, first.valid)
            remarks = predictor.task.inspect(pixels, lambda x: predictor(x).pixels)
    notes = tuple(pages.notes)
    if predictor.engine.model is None and predictor.engine.tiling is None:
        notes += ("the card does not state the network's memory: --max-memory limited images and results only",)
    return PredictionReport(notes, pages.passes, remarks)


@dataclass
class _Pages:
    """The pages of a file and what a model makes of each, one at a time; what was said of them and the last passes.

    The first is kept where it will be inspected.
    """

    predictor: Predictor
    file: ImageSource
    options: PredictionOptions
    output: Path
    on_tile: OnTile
    notes: dict[str, None] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    first: Picture | None = None

    def __iter__(self) -> Iterator[Page]:
        with contextlib.ExitStack() as stack:
            add_uncertainty = None
            if self.options.uncertainty:
                beside = self.output.with_name(f"{self.output.stem}-uncertainty.tif")
                add_uncertainty = stack.enter_context(page_writer(beside))
            for number in range(self.file.count):
                with reading_errors(self.file.path, "processed", "Leave it out."):
                    picture, prediction = self._predict(number)
                if add_uncertainty is not None:
                    add_uncertainty(Picture(prediction.uncertainty))
                yield picture, prediction

    def _predict(self, number: int) -> Page:
        name = str(self.file.path) if number == 0 else f"{self.file.path}, page {number + 1}"
        picture = fit_channels(self.file.read(number, self.predictor.channels), self.predictor, name)
        try:
            prediction = self.predictor(picture.pixels, self.on_tile, picture.valid)
        except ArgumentError as error:
            raise FileError(name, str(error)) from error
        if number == 0 and self.options.inspect:
            self.first = picture
        self.notes |= dict.fromkeys((*picture.notes, *lost_extras(picture.extras, self._format)))
        self.passes = prediction.passes
        return picture, prediction

    @property
    def _format(self) -> str:
        row = format_of(self.output)
        return "" if row is None else row.name


def reads_in_parts(predictor: Predictor, file: ImageSource) -> bool:
    """Return whether a file is too large for the memory and of a kind that is read and written in parts."""
    return not predictor.holds(file.shape()) and file.can_read_windows


def fit_channels(picture: Picture, predictor: Predictor, source: str) -> Picture:
    """Return a picture with the channels of a model, where nothing is lost by it.

    Raises:
        FileError: Something would be.
    """
    pixels = picture.pixels
    layout = plan_channels(
        pixels.shape[2],
        predictor.channels,
        predictor.task.restores,
        None if picture.alpha is None else pixels.shape[2],
        lambda: bool((pixels == pixels[..., :1]).all()),
        (source, predictor.engine.source),
    )
    (run, *others) = layout.runs
    valid = picture.valid
    if not others and run != tuple(range(pixels.shape[2])):
        pixels = pixels[..., list(run)]
        valid = None if valid is None else valid[..., list(run)]
    holes = () if valid is None else (f"{np.count_nonzero(~valid)} samples without data left as they are",)
    return replace(picture, pixels=pixels, valid=valid, notes=(*picture.notes, *holes, *layout.notes))


def describe(report: PredictionReport) -> list[str]:
    """Return what can be said of a file that is done, the first part for the end of its line."""
    last = report.passes[-1] if report.passes else None
    facts = [f"{name} {value}" for name, value in report.remarks.facts.items()]
    if last is not None and last.tiles > 1:
        facts.append(f"{last.tiles} tiles")
        if last.change is not None:
            facts.append(f"{len(report.passes)} passes, image statistics changed by {last.change:.0e} in the last")
    return [", ".join((*facts, *report.notes)), *(f"warning: {warning}" for warning in report.remarks.warnings)]


def _stream(
    predictor: Predictor, file: ImageSource, output: Path, options: PredictionOptions, on_tile: OnTile
) -> PredictionReport:
    height, width, _ = file.shape()
    wanted = [f"--{name}" for name in sorted(options.extras - {"probabilities", "inspect"})]
    wanted += ["--uncertainty"] if options.uncertainty else []
    if wanted or options.tta > 1:
        reason = f"has {width}x{height} pixels, too many for {', '.join(wanted or ['--tta'])} within the memory."
        raise FileError(str(file.path), reason, "Leave it out, or raise --max-memory.")
    row = format_of(output)
    if row is None or not row.windows:
        reason = f"cannot be written in parts, as {width}x{height} pixels need."
        raise FileError(str(output), reason, f"Choose {first_suffix(lambda row: row.windows)}.")
    beside = output.with_name(f"{output.stem}-probabilities.tif") if options.probabilities else None
    passes, notes = stream_file(predictor.network, predictor.task, file.path, output, beside, predictor.memory, on_tile)
    return PredictionReport(("read and written in parts", *file.notes, *notes), passes)
