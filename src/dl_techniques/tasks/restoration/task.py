"""Restoration: images to images of the same unit, by a network without additive parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dl_techniques.datasets.normalization import in_unit
from dl_techniques.images.display import centre, contact_sheet, to_display
from dl_techniques.images.files import write_image
from dl_techniques.images.source import Picture
from dl_techniques.tasks.base import (
    CaptionedPicture,
    Evaluation,
    Function,
    Page,
    Sample,
    Scaling,
    Statistics,
    Task,
)
from dl_techniques.tasks.restoration.evaluation import evaluate, similarity

if TYPE_CHECKING:
    from dl_techniques.card import ModelCard
    from dl_techniques.datasets.pairs import Pair

COMPARED = 512  # height and width of the centre that is shown before and after, in pixels


@dataclass(frozen=True)
class RestorationTask(Task):
    """Restored images, in the unit and type of the input."""

    name: ClassVar[str] = "restore"
    noun: ClassVar[str] = "restored"
    restores: ClassVar[bool] = True
    extras: ClassVar[frozenset[str]] = frozenset({"compare"})

    @classmethod
    def from_card(cls, card: ModelCard, source: str) -> RestorationTask:
        card.standardizes(source)  # refuses what is not known
        return cls()

    def card_fields(self) -> dict[str, Any]:
        return {
            "value_range": "any: the model is scale-equivariant",
            "output": "the restored image, in the unit of the input",
        }

    # === Prediction ===

    def scaling(self, found: Statistics, largest: float | None) -> Scaling:
        return Scaling(0.0, known_unit(found.largest, largest))

    def decode(self, output: np.ndarray, scaling: Scaling, dtype: np.dtype) -> np.ndarray:
        result = output.astype("float64") * scaling.divisor
        if dtype.kind == "f":
            return result.astype(dtype)
        limits = np.iinfo(dtype)
        return np.rint(result).clip(limits.min, limits.max).astype(dtype)

    def write(self, output: Path, pages: Iterable[Page], count: int, extras: frozenset[str]) -> None:
        def compared() -> Iterator[Page]:
            for number, (picture, prediction) in enumerate(pages, start=1):
                page = f"-{number}" if count > 1 else ""
                sheet = Picture(comparison(picture.pixels, prediction.pixels))
                write_image(output.with_name(f"{output.stem}-compare{page}.png"), sheet)
                yield picture, prediction

        super().write(output, compared() if "compare" in extras else pages, count, extras)

    # === Truth ===

    def sample(self, pair: Pair, pixels: np.ndarray, target: np.ndarray, largest: float) -> Sample:
        return Sample(pair.name, in_unit(pixels, largest), in_unit(target, largest))

    def evaluate(self, function: Function, samples: Iterable[Sample]) -> Evaluation:
        return evaluate(function, samples)

    def pictures(self, sample: Sample, output: np.ndarray) -> list[CaptionedPicture]:
        error = np.abs(output - sample.target).mean(axis=2, keepdims=True)
        return [
            (sample.name, to_display(sample.image, 0, 1)),
            (f"restored, PSNR {similarity(output, sample.target)[0]:.2f} dB", to_display(output, 0, 1)),
            ("target", to_display(sample.target, 0, 1)),
            ("error, eight times", to_display(error, 0, 1 / 8)),
        ]


def known_unit(peak: float, largest: float | None) -> float:
    """Return 1 for magnitudes that the model knows, otherwise a power of two that brings them there.

    It knows those whose squares float32 can hold; where 8-bit integers were calibrated, those next to the largest.
    """
    if peak == 0 or (largest is None and 1e-12 < peak < 1e12):
        return 1.0
    return float(2.0 ** (np.floor(np.log2(peak)) if largest is None else np.rint(np.log2(peak / largest))))


def comparison(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the centre before, after, and their difference about grey, side by side, uint8."""
    before, after = (np.nan_to_num(centre(x, COMPARED).astype("float64")) for x in (before, after))
    low, high = np.percentile(before, (0.1, 99.9))
    row = [("before", to_display(before, low, high)), ("after", to_display(after, low, high))]
    if before.shape == after.shape:
        removed = before - after
        spread = 4 * float(removed.std())
        row.append(("removed", to_display(removed, -spread, spread)))
    return contact_sheet([row])
