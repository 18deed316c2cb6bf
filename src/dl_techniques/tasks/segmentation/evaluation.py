"""Evaluation of a segmenter on complete images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.metrics import Calibration, Confusion, LabelConfusion
from dl_techniques.report import Table
from dl_techniques.tasks.base import Evaluation, Function, Sample
from dl_techniques.tasks.segmentation.classes import COLOURS, IGNORED, Classes

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class SegmentationEvaluation(Evaluation):
    """Agreement of predicted and true classes; the score of an image is the mean Dice of its classes."""

    classes: Classes
    confusion: Confusion | LabelConfusion
    calibration: Calibration
    scores: tuple[float, ...]

    def figures(self) -> dict[str, Any]:
        return {
            "images": len(self.scores),
            "mean_dice": self.confusion.mean_dice,
            "mean_iou": self.confusion.mean_iou,
            "accuracy": self.confusion.accuracy,
            "calibration_error": self.calibration.error,
            "classes": self.rows(),
        }

    def logged(self) -> dict[str, float]:
        return {"dice": self.confusion.mean_dice, "iou": self.confusion.mean_iou}

    def headline(self) -> dict[str, str]:
        return {
            "mean Dice": f"{self.confusion.mean_dice:.3f}",
            "mean IoU": f"{self.confusion.mean_iou:.3f}",
            "label accuracy" if self.classes.labels else "pixel accuracy": f"{self.confusion.accuracy:.1%}",
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return Dice and IoU of each class; `None` for one that is not in the truth."""
        counts = self.confusion.counts
        present = (counts[:, 1].sum(axis=1) if self.classes.labels else counts.sum(axis=1)) > 0
        figures = zip(self.classes.names, present, self.confusion.dice, self.confusion.iou, strict=True)
        return [
            {"class": name, "dice": float(dice) if there else None, "iou": float(iou) if there else None}
            for name, there, dice, iou in figures
        ]

    def tables(self) -> list[Table]:
        word = "label" if self.classes.labels else "class"
        return [
            Table(
                "Labels" if self.classes.labels else "Classes",
                (word, "Dice", "IoU"),
                self._shown(),
            ),
            self._label_table() if self.classes.labels else self._confusion_table(),
            self._calibration_table(),
        ]

    def legend(self) -> list[tuple[str, str]]:
        known = COLOURS[int(self.classes.labels) :]
        colours = [f"#{known[index % len(known)]}" for index in range(self.classes.count)]
        ignored = [("#404040", "ignored")] if self.classes.ignored else []
        return [*zip(colours, self.classes.names, strict=True), *ignored, ("#f53c3c", "wrong")]

    def describe(self, console: Console) -> None:
        from rich.table import Table as ConsoleTable

        shown = ConsoleTable("label" if self.classes.labels else "class", "Dice", "IoU")
        for row in self._shown():
            shown.add_row(*row)
        shown.add_row("mean", f"{self.confusion.mean_dice:.3f}", f"{self.confusion.mean_iou:.3f}", style="bold")
        console.print(shown)
        what = "label accuracy" if self.classes.labels else "pixel accuracy"
        console.print(f"{what} {self.confusion.accuracy:.2%} · calibration error {self.calibration.error:.2%}")

    def _shown(self) -> list[tuple[str, str, str]]:
        def figure(value: float | None) -> str:
            return "–" if value is None else f"{value:.3f}"

        return [(row["class"], figure(row["dice"]), figure(row["iou"])) for row in self.rows()]

    def _confusion_table(self) -> Table:
        counts = self.confusion.counts
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        names = self.classes.names
        rows = [(name, *(f"{share:.1%}" for share in row)) for name, row in zip(names, shares, strict=True)]
        return Table("Confusion matrix (rows: truth)", ("", *names), rows)

    def _label_table(self) -> Table:
        counts = self.confusion.counts  # (label, truth, prediction)
        recall = counts[:, 1, 1] / np.maximum(counts[:, 1].sum(axis=1), 1)
        precision = counts[:, 1, 1] / np.maximum(counts[:, :, 1].sum(axis=1), 1)
        rows = zip(self.classes.names, recall, precision, strict=True)
        return Table(
            "Recall and precision", ("", "recall", "precision"), [(n, f"{r:.1%}", f"{p:.1%}") for n, r, p in rows]
        )

    def _calibration_table(self) -> Table:
        bins = self.calibration.table
        pixels = max(sum(bin.count for bin in bins), 1)
        rows = [
            (f"{bin.low:.2f} to {bin.high:.2f}", f"{bin.count / pixels:.2%}", f"{bin.accuracy:.1%}")
            for bin in bins
            if bin.count
        ]
        header = ("probability", "share of pixels", "accuracy")
        return Table(f"Calibration: expected error {self.calibration.error:.2%}", header, rows)


def evaluate(function: Function, samples: Iterable[Sample], classes: Classes) -> SegmentationEvaluation:
    """Compare a model, which returns probabilities, with the truth on whole images."""
    counter = LabelConfusion if classes.labels else Confusion
    total, calibration, scores = counter(classes.count), Calibration(), []
    for sample in samples:
        predicted, confidence = classes.decide(function(sample.image[None])[0])
        valid = sample.target != IGNORED
        total.update(predicted, sample.target, valid)
        calibration.update(confidence, predicted == sample.target, valid)
        scores.append(counter(classes.count).update(predicted, sample.target, valid).mean_dice)
    return SegmentationEvaluation(classes, total, calibration, tuple(scores))
