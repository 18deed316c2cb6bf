"""Segmentation: a class of each pixel, or labels that may overlap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dl_techniques.datasets.normalization import standardize
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.display import thumbnail, to_display, visible
from dl_techniques.images.files import write_image
from dl_techniques.images.formats import first_suffix
from dl_techniques.images.metadata import placed_extras
from dl_techniques.images.source import Picture
from dl_techniques.images.tiff import page_writer
from dl_techniques.metrics import Confusion
from dl_techniques.tasks.base import (
    CaptionedPicture,
    Function,
    Page,
    Preview,
    Sample,
    Scaling,
    Statistics,
    Task,
    as_rgb,
)
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes, overlay, paint
from dl_techniques.tasks.segmentation.evaluation import SegmentationEvaluation, evaluate
from dl_techniques.tasks.segmentation.inspection import check_values, describe_classes
from dl_techniques.tasks.segmentation.masks import write_masks
from dl_techniques.tasks.segmentation.readers import reader_of

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.card import ModelCard
    from dl_techniques.datasets.inspection import Inspection
    from dl_techniques.datasets.pairs import Pair
    from dl_techniques.datasets.targets import TargetReader

WRONG = (245, 60, 60)
SHOWN = 256  # pixels of the side of a picture of how a mask was understood


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Classes of pixels; see `Task` for the attributes."""

    name: ClassVar[str] = "segment"
    noun: ClassVar[str] = "mask"
    extras: ClassVar[frozenset[str]] = frozenset({"probabilities", "overlay"})
    quantization_limit: ClassVar[float | None] = 0.01
    quantization_measure: ClassVar[str] = "loss of Dice"

    classes: Classes
    standardizes: bool = True
    decoded: bool = False

    @property
    def activation(self) -> str:
        return self.classes.activation

    @classmethod
    def from_card(cls, card: ModelCard, source: str) -> SegmentationTask:
        classes = Classes.from_card(card.details, source)
        return cls(classes, card.standardizes(source), card.exported.get("activation") == "argmax")

    def card_fields(self) -> dict[str, Any]:
        return {
            "normalization": "standardize",
            "value_range": "any: each image is scaled to mean 0 and variance 1 before it goes in",
            "output": f"probabilities ({self.activation})",
            "details": self.classes.as_card(),
        }

    # === Prediction ===

    def scaling(self, statistics: Statistics, largest: float | None) -> Scaling:
        if statistics.largest > float(np.finfo("float32").max):
            raise ArgumentError("pixels", "must have magnitudes that float32 holds", statistics.largest)
        return Scaling(statistics.mean, statistics.deviation or 1.0) if self.standardizes else Scaling()

    def decode(self, output: np.ndarray, scaling: Scaling, dtype: np.dtype) -> np.ndarray:
        indices = self.classes.decide(output)[0] if output.dtype.kind == "f" else output.astype("uint8")
        return indices.reshape(*output.shape[:2], -1)

    def with_holes(self, result: np.ndarray, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return class indices, `IGNORED` where no channel of the image holds data."""
        return np.where(valid.any(axis=2, keepdims=True), result, np.uint8(IGNORED))

    def result_dtype(self, dtype: np.dtype) -> np.dtype:
        return np.dtype("uint8")

    def result_samples(self, outputs: int) -> int:
        return self.classes.count if self.classes.labels else 1

    def result_suffixes(self, source: Path) -> tuple[str, ...]:
        one, stack = first_suffix(lambda row: row.palette), first_suffix(lambda row: row.pages)
        return (stack,) if self.classes.labels else (one, stack)

    def write(self, output: Path, pages: Iterable[Page], count: int, extras: frozenset[str]) -> None:
        write_masks(output, self._masks(output, pages, count, extras), self.classes, count)

    def _masks(self, output: Path, pages: Iterable[Page], count: int, extras: frozenset[str]) -> Iterator[Picture]:
        """Yield the masks, with what their images say of their place, and write what else was asked for.

        That is complete when the last mask was taken.
        """
        with contextlib.ExitStack() as stack:
            add_probabilities = None
            if "probabilities" in extras:
                beside = output.with_name(f"{output.stem}-probabilities.tif")
                add_probabilities = stack.enter_context(page_writer(beside))
            for number, (picture, prediction) in enumerate(pages, start=1):
                mask = prediction.pixels if self.classes.labels else prediction.pixels[..., 0]
                if add_probabilities is not None:
                    if prediction.probabilities is None:
                        reason = "would need probabilities; the artifact returns classes."
                        raise FileError(str(output), reason, "Leave it out.")
                    add_probabilities(Picture(prediction.probabilities))
                if "overlay" in extras:
                    page = f"-{number}" if count > 1 else ""
                    shown = Picture(overlay(picture.pixels, mask, self.classes))
                    write_image(output.with_name(f"{output.stem}-overlay{page}.png"), shown)
                yield Picture(prediction.pixels, extras=placed_extras(picture.extras, IGNORED))

    def facts(self) -> dict[str, str]:
        return {"classes": ", ".join(self.classes.names)}

    def preview(self, pixels: np.ndarray, result: np.ndarray) -> Preview:
        labels, count = self.classes.labels, self.classes.count
        mask = result if labels else result[..., 0]
        known = mask[mask != IGNORED]
        pixels_of = (mask == 1).sum(axis=(0, 1)) if labels else np.bincount(known, minlength=count)
        shares = pixels_of / (mask.shape[0] * mask.shape[1])
        named = zip(self.classes.colours, self.classes.names, shares, strict=True)
        legend = tuple((f"#{bytes(colour).hex()}", name, float(share)) for colour, name, share in named)
        before, after = (overlay(pixels, x, self.classes) for x in (np.zeros_like(mask), mask))
        return Preview(before, after, legend)

    # === Truth ===

    @property
    def reader(self) -> TargetReader:
        return reader_of(self.classes)

    def check_targets(self, inspection: Inspection, console: Console) -> None:
        check_values(inspection, self.classes)
        describe_classes(inspection, self.classes, console)

    def sample(self, pair: Pair, pixels: np.ndarray, target: np.ndarray, largest: float) -> Sample:
        mask = self.classes.encode(target if self.classes.labels else target[..., 0], pair.words(pair.target))
        return Sample(pair.name, standardize(pixels) if self.standardizes else pixels.astype("float32"), mask)

    def understood(self, pair: Pair, pixels: np.ndarray, target: np.ndarray) -> list[CaptionedPicture]:
        """Return an image of a data set and its mask in the colours of the legend, `(SHOWN, SHOWN, 3)` each."""
        mask = self.classes.encode(target if self.classes.labels else target[..., 0], pair.words(pair.target))
        low, high = np.percentile(visible(pixels), (0.5, 99.5))
        pictures = (f"mask: {pair.name}", paint(mask)), ("its image", to_display(pixels, low, high))
        return [(caption, thumbnail(picture, SHOWN)) for caption, picture in pictures]

    def evaluate(self, function: Function, samples: Iterable[Sample]) -> SegmentationEvaluation:
        return evaluate(function, samples, self.classes)

    def pictures(self, sample: Sample, output: np.ndarray) -> list[CaptionedPicture]:
        predicted, _ = self.classes.decide(output)
        valid = sample.target != IGNORED
        score = evaluate(lambda _: output[None], [sample], self.classes).scores[0]
        low, high = np.percentile(visible(sample.image), (0.5, 99.5))
        wrong = (predicted != sample.target) & valid
        wrong = wrong.any(axis=2) if wrong.ndim == 3 else wrong
        shown = to_display(sample.image, low, high)
        dimmed = (0.4 * as_rgb(shown)).astype("uint8")
        dimmed[wrong] = WRONG
        return [
            (sample.name, shown),
            ("truth", paint(sample.target)),
            (f"prediction, mean Dice {score:.3f}", paint(predicted)),
            ("wrong pixels", dimmed),
        ]

    # === 8-bit integers ===

    def quantization_loss(
        self, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], clean: Sequence[np.ndarray]
    ) -> float:
        """Return 1 − the mean Dice of the masks of both."""
        confusion = Confusion(2 if self.classes.labels else self.classes.count)
        none = Scaling()
        for outputs in zip(expected, actual, strict=True):
            truth, found = (self.decode(x[0], none, x.dtype) for x in outputs)
            confusion.update(found, truth)
        return 1 - confusion.mean_dice
