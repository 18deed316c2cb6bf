"""How well a segmenter does on whole images, and pictures of where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.images.display import to_display, visible
from dl_techniques.metrics import Calibration, Confusion, LabelConfusion
from dl_techniques.tasks.segmentation.classes import COLOURS, IGNORED, Classes, paint

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.training.recipes.segmentation.batches import SegmentationSample


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        confusion: Over all images.
        calibration: Of the probabilities, over all images.
        scores: Mean Dice of the classes of each image, in the order of the samples.
    """

    confusion: Confusion | LabelConfusion
    calibration: Calibration
    scores: tuple[float, ...]


def predict(function: Function, image: np.ndarray, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Return the class index of each pixel, uint8, and the probability that the model gives it; see `Classes.decide`.

    Args:
        function: The model; it returns probabilities.
        image: `(height, width, channels)`, normalized.
        classes: What the model's channels mean.
    """
    return classes.decide(function(image[None])[0])


def evaluate(function: Function, samples: Iterable[SegmentationSample], classes: Classes) -> Evaluation:
    """Compare a model, which returns probabilities, with the truth on whole images."""
    counter = LabelConfusion if classes.labels else Confusion
    total, calibration, scores = counter(classes.count), Calibration(), []
    for sample in samples:
        predicted, confidence = predict(function, sample.image, classes)
        valid = sample.classes != IGNORED
        total.update(predicted, sample.classes, valid)
        calibration.update(confidence, predicted == sample.classes, valid)
        scores.append(counter(classes.count).update(predicted, sample.classes, valid).mean_dice)
    return Evaluation(total, calibration, tuple(scores))


def table(evaluation: Evaluation, classes: Classes) -> list[dict[str, Any]]:
    """Return a row of figures for each class."""
    confusion = evaluation.confusion
    return [
        {"class": name, "dice": float(confusion.dice[index]), "iou": float(confusion.iou[index])}
        for index, name in enumerate(classes.names)
    ]


def metrics_of(evaluation: Evaluation, classes: Classes) -> dict[str, Any]:
    """Return all figures as plain values."""
    confusion = evaluation.confusion
    return {
        "images": len(evaluation.scores),
        "mean_dice": confusion.mean_dice,
        "mean_iou": confusion.mean_iou,
        "accuracy": confusion.accuracy,
        "calibration_error": evaluation.calibration.error,
        "classes": table(evaluation, classes),
    }


def describe_evaluation(evaluation: Evaluation, classes: Classes, console: Console) -> None:
    """Show the figures of each class and of all."""
    from rich.table import Table

    confusion = evaluation.confusion
    shown = Table("label" if classes.labels else "class", "Dice", "IoU")
    for row in table(evaluation, classes):
        shown.add_row(row["class"], f"{row['dice']:.3f}", f"{row['iou']:.3f}")
    shown.add_row("mean", f"{confusion.mean_dice:.3f}", f"{confusion.mean_iou:.3f}", style="bold")
    console.print(shown)
    what = "answers, a label at a pixel," if classes.labels else "pixels"
    error = evaluation.calibration.error
    console.print(f"{confusion.accuracy:.2%} of the {what} are right · calibration error {error:.2%}")


def colour_key(classes: Classes) -> list[tuple[str, str]]:
    """Return the colour of each class for HTML, and what it means."""
    known = COLOURS[int(classes.labels) :]
    colours = [f"#{known[index % len(known)]}" for index in range(classes.count)]
    ignored = [("#404040", "ignored")] if classes.ignored else []
    return [*zip(colours, classes.names, strict=True), *ignored, ("#f53c3c", "wrong")]


def error_row(name: str, sample: SegmentationSample, predicted: np.ndarray, score: float) -> list:
    """Return image, truth, prediction and wrong pixels as captioned pictures."""
    low, high = np.percentile(visible(sample.image), (0.5, 99.5))
    wrong = (predicted != sample.classes) & (sample.classes != IGNORED)
    wrong = wrong.any(axis=2) if wrong.ndim == 3 else wrong
    shown = to_display(sample.image, low, high)
    colours = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2)
    dimmed = (0.4 * colours).astype("uint8")
    dimmed[wrong] = (245, 60, 60)
    return [
        (f"{name}: {sample.name}", shown),
        ("truth", paint(sample.classes)),
        (f"prediction, mean Dice {score:.3f}", paint(predicted)),
        ("wrong pixels", dimmed),
    ]


def extremes(scores: Sequence[float], count: int = 3) -> list[tuple[str, int]]:
    """Return the positions of the worst and the best scores, each once, with the word for it; NaN is neither."""
    order = [index for index in np.argsort(scores, kind="stable").tolist() if not np.isnan(scores[index])]
    worst = order[:count]
    best = [index for index in reversed(order) if index not in worst][:count]
    return [("worst", index) for index in worst] + [("best", index) for index in best]
