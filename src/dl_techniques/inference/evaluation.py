"""A model on images whose truth is known: figures, tables and pictures of the best and the worst."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl_techniques.atomic import check_writable, write_file
from dl_techniques.card import ModelCard
from dl_techniques.data_files import write_csv
from dl_techniques.datasets.inspection import describe_images, inspect_pairs
from dl_techniques.datasets.lazy import LazyDataset, MemoryBudget
from dl_techniques.datasets.pairs import Pair, find_pairs
from dl_techniques.engines.engine import Engine
from dl_techniques.errors import FileError
from dl_techniques.images.files import print_left_out
from dl_techniques.inference.memory import parse_memory
from dl_techniques.inference.tiled_function import tiled_function
from dl_techniques.report import REPORT, Report, worst_and_best
from dl_techniques.tasks.base import CaptionedPicture, Evaluation, Sample
from dl_techniques.tasks.registry import task_of

if TYPE_CHECKING:
    from rich.console import Console

CACHED_BYTES = 4 * 10**9  # of samples that stay in memory; the others are read again for the pictures


def evaluate_files(
    engine: Engine,
    card: ModelCard,
    images: str,
    targets: str | None,
    output: Path,
    console: Console,
    max_memory: str = "2GB",
) -> Path:
    """Measure a model on images with targets; write report, JSON and CSV to a new folder and return the report's path.

    Args:
        engine: The model.
        card: Its card.
        images: Folder, pattern or CSV file.
        targets: Folder or pattern of masks or target images; `None` with a CSV file.
        output: Folder; it must not exist.
        console: Where to print what was measured.
        max_memory: What the network may take at once; larger images are computed in tiles.

    Raises:
        FileError: The card names no task, files are missing or broken, or the folder exists or cannot be written.
        ArgumentError: The memory is too small for a tile.
    """
    task = task_of(card, engine.source, "restore" if engine.use_bias is False else None)
    if task.decoded:
        raise FileError(engine.source, "returns classes, no probabilities.", "Export it without --activation argmax.")
    if output.exists():
        raise FileError(str(output), "exists already.", "Name a new folder.")
    check_writable(output)
    budget = MemoryBudget(CACHED_BYTES)
    print_left_out(console, images, targets)
    pairs = find_pairs(images, targets, task.reader.alpha)
    inspection = inspect_pairs(pairs, console, task.reader, engine.channels, budget)
    if inspection.channels != engine.channels:
        reason = f"have {inspection.channels} channels; {engine.source} takes {engine.channels}."
        raise FileError(images, reason, "Convert the images, or name another model.")
    describe_images(inspection, console)
    task.check_targets(inspection, console)
    function = tiled_function(engine, parse_memory(max_memory), inspection.largest)

    def read(pair: Pair) -> Sample:
        return task.sample(pair, *inspection.read(pair), inspection.largest_float)

    samples = LazyDataset(inspection.pairs, read, budget)
    evaluation = task.evaluate(function, samples)
    evaluation.describe(console)
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise FileError(str(output), f"cannot be written: {error.strerror}.", "Choose another folder.") from error
    write_evaluation(
        output,
        evaluation,
        lambda number: task.pictures(samples[number], function(samples[number].image[None])[0]),
        title=f"{engine.source} on {images}",
        lead=f"{len(samples)} images.",
        facts={"model": engine.source, "images": images, "targets": targets or "as the CSV file says"},
    )
    return output / REPORT


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    pictures: Callable[[int], Sequence[CaptionedPicture]],
    title: str,
    lead: str,
    facts: Mapping[str, str],
    curves: Mapping[str, Sequence[float]] | None = None,
    understood: Sequence[Sequence[CaptionedPicture]] = (),
) -> None:
    """Write `report.html`, `metrics.json` and, where the task has a table of figures, `metrics.csv` into a folder.

    `pictures` returns those of a sample, given its number; the first caption names the sample. Curves are numbers
    of each epoch, by what they are; `understood` is pictures of how targets were understood.
    """
    write_file(folder / "metrics.json", json.dumps(evaluation.figures(), indent=2).encode())
    if rows := evaluation.rows():
        write_csv(folder / "metrics.csv", list(rows[0]), [list(row.values()) for row in rows])
    shown = []
    for word, number in worst_and_best(evaluation.scores):
        (name, picture), *rest = pictures(number)
        shown.append([(f"{word}: {name}", picture), *rest])
    report = Report(
        title=title,
        lead=lead,
        numbers=evaluation.headline(),
        tables=evaluation.tables(),
        curves=curves or {},
        facts=facts,
        key=evaluation.legend(),
        rows=shown,
        targets=[picture for row in understood for picture in row],
    )
    write_file(folder / REPORT, report.to_html().encode())
