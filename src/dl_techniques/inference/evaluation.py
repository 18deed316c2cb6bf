"""What a segmenter did on labelled images, as a page, as JSON and as CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.atomic import check_writable, write_file
from dl_techniques.card import ModelCard
from dl_techniques.datasets.inspection import describe_images, inspect_pairs
from dl_techniques.datasets.lazy import LazyDataset, MemoryBudget
from dl_techniques.datasets.normalization import standardize
from dl_techniques.datasets.pairs import Pair, find_pairs
from dl_techniques.engines.engine import Engine
from dl_techniques.errors import FileError
from dl_techniques.inference.memory import parse_memory
from dl_techniques.inference.tiled_function import bounded_function
from dl_techniques.report import REPORT, Report, Table
from dl_techniques.tasks.segmentation.classes import Classes
from dl_techniques.tasks.segmentation.inspection import check_values, describe_classes, reader_of
from dl_techniques.tasks.segmentation.scores import (
    Evaluation,
    colour_key,
    describe_evaluation,
    error_row,
    evaluate,
    extremes,
    metrics_of,
    predict,
    table,
)
from dl_techniques.training.recipes.segmentation.batches import SegmentationSample, read_sample

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function

KEPT = 4 * 10**9  # bytes of samples that stay in memory; the others are read again for the pictures


def write_evaluation(
    folder: Path,
    result: Evaluation,
    function: Function,
    samples: Sequence[SegmentationSample],
    classes: Classes,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    curves: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write `report.html`, `metrics.json` and `metrics.csv`, the figures of each class.

    Args:
        folder: Where to; it exists.
        result: What was measured.
        function: The model, for the pictures.
        samples: What it was measured on.
        classes: What the model's channels mean.
        title: Heading of the page.
        lead: One sentence below it.
        facts: What else to tell.
        curves: Numbers of each epoch, by what they are.
    """
    write_file(folder / "metrics.json", json.dumps(metrics_of(result, classes), indent=2).encode())
    lines = ["class,dice,iou", *(f'"{r["class"]}",{r["dice"]},{r["iou"]}' for r in table(result, classes))]
    write_file(folder / "metrics.csv", "\n".join([*lines, ""]).encode())
    confusion = result.confusion
    pictures = [
        error_row(word, samples[index], predict(function, samples[index].image, classes)[0], result.scores[index])
        for word, index in extremes(result.scores)
    ]
    report = Report(
        title=title,
        lead=lead,
        numbers={
            "mean Dice": f"{confusion.mean_dice:.3f}",
            "mean IoU": f"{confusion.mean_iou:.3f}",
            "labels right" if classes.labels else "pixels right": f"{confusion.accuracy:.1%}",
        },
        tables=_tables(result, classes),
        curves=curves or {},
        facts=facts,
        key=colour_key(classes),
        rows=pictures,
    )
    write_file(folder / REPORT, report.to_html().encode())


def _tables(result: Evaluation, classes: Classes) -> list[Table]:
    bins = result.calibration.table
    pixels = max(sum(bin.count for bin in bins), 1)
    return [
        Table(
            "Labels" if classes.labels else "Classes",
            ("label" if classes.labels else "class", "Dice", "IoU"),
            [(row["class"], f"{row['dice']:.3f}", f"{row['iou']:.3f}") for row in table(result, classes)],
        ),
        _label_table(result, classes) if classes.labels else _confusion_table(result, classes),
        Table(
            f"Calibration: expected error {result.calibration.error:.2%}",
            ("probability", "share of pixels", "share right"),
            [
                (f"{bin.low:.2f} to {bin.high:.2f}", f"{bin.count / pixels:.2%}", f"{bin.accuracy:.1%}")
                for bin in bins
                if bin.count
            ],
        ),
    ]


def _confusion_table(result: Evaluation, classes: Classes) -> Table:
    counts = result.confusion.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return Table(
        "Of the pixels of each class (row), how many were taken for which",
        ("", *classes.names),
        [(name, *(f"{share:.1%}" for share in row)) for name, row in zip(classes.names, shares, strict=True)],
    )


def _label_table(result: Evaluation, classes: Classes) -> Table:
    counts = result.confusion.counts  # (label, is there, was predicted)
    found = counts[:, 1, 1] / np.maximum(counts[:, 1].sum(axis=1), 1)
    right = counts[:, 1, 1] / np.maximum(counts[:, :, 1].sum(axis=1), 1)
    return Table(
        "Of the pixels with each label, how many were found, and of those found, how many have it",
        ("", "found", "right"),
        [(name, f"{f:.1%}", f"{r:.1%}") for name, f, r in zip(classes.names, found, right, strict=True)],
    )


def evaluate_files(
    engine: Engine,
    card: ModelCard,
    images: str,
    masks: str | None,
    output: Path,
    console: Console,
    max_memory: str = "2GB",
) -> Path:
    """Measure a segmenter on labelled images and write the page, JSON and CSV to a new folder.

    Args:
        engine: The model; it returns probabilities.
        card: Its card.
        images: Folder, pattern or CSV file.
        masks: Folder or pattern; `None` with a CSV file.
        output: Folder; it must not exist.
        console: Where to tell what was measured.
        max_memory: What the network may take at once; larger images are computed in tiles.

    Returns:
        The page.

    Raises:
        FileError: The card tells no classes, files are missing or broken, or the folder exists or cannot be written.
        ArgumentError: The memory is too small for a tile.
    """
    source = engine.source
    classes = Classes.from_card(card.details, source)
    if card.exported.get("activation") == "argmax":
        raise FileError(source, "returns classes, no probabilities.", "Export it without --activation argmax.")
    if output.exists():
        raise FileError(str(output), "exists already.", "Name a new folder.")
    check_writable(output)
    budget = MemoryBudget(KEPT)
    inspection = inspect_pairs(find_pairs(images, masks), console, reader_of(classes), card.channels, budget)
    if inspection.channels != card.channels:
        reason = f"have {inspection.channels} channels; {source} takes {card.channels}."
        raise FileError(images, reason, "Convert the images, or name another model.")
    check_values(inspection, classes)
    describe_images(inspection, console)
    describe_classes(inspection, classes, console)
    normalize = standardize if card.standardizes(source) else _as_floats
    function = bounded_function(engine, parse_memory(max_memory), inspection.largest)

    def read(pair: Pair) -> SegmentationSample:
        return read_sample(pair, classes, card.channels, normalize, inspection.decoded)

    samples = LazyDataset(inspection.pairs, read, budget)
    result = evaluate(function, samples, classes)
    describe_evaluation(result, classes, console)
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise FileError(str(output), f"cannot be written: {error.strerror}.", "Choose another folder.") from error
    write_evaluation(
        output,
        result,
        function,
        samples,
        classes,
        title=f"{source} on {images}",
        lead=f"{len(samples)} images.",
        facts={"model": source, "images": images, "masks": masks or "as the CSV file says"},
    )
    return output / REPORT


def _as_floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype("float32")
