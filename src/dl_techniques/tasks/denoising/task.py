"""Denoising: restoration whose target is the image without its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.tasks.base import Function, Remarks
from dl_techniques.tasks.denoising.noise_report import inspect_centre
from dl_techniques.tasks.restoration.task import RestorationTask

if TYPE_CHECKING:
    from dl_techniques.card import ModelCard

NOISE = 25 / 255  # standard deviation of the noise that 8-bit integers are measured on, of the largest intensity


@dataclass(frozen=True)
class DenoisingTask(RestorationTask):
    """Images without the noise that the card names; `scale_equivariant`: the network has no additive parameter."""

    name: ClassVar[str] = "denoise"
    noun: ClassVar[str] = "denoised"
    extras: ClassVar[frozenset[str]] = frozenset({"compare", "inspect"})
    quantization_limit: ClassVar[float | None] = 0.25
    quantization_measure: ClassVar[str] = "loss of PSNR in dB"

    noise: Mapping[str, Any] = field(default_factory=dict)
    scale_equivariant: bool = True

    @classmethod
    def from_card(cls, card: ModelCard, source: str) -> DenoisingTask:
        card.standardizes(source)  # refuses what is not known
        return cls(card.details.get("noise", {}))

    def card_fields(self) -> dict[str, Any]:
        trained = "any: scale-equivariant" if self.scale_equivariant else "that of the training images, 0 to 1"
        return {
            "value_range": trained,
            "output": "the clean image, in the unit of the input",
            "details": {"noise": dict(self.noise)},
        }

    def inspect(self, pixels: np.ndarray, apply: Function) -> Remarks:
        report = inspect_centre(pixels, apply)
        gain = {} if report.gain is None else {"estimated gain": f"{report.gain:.1f} dB"}
        return Remarks({"noise": f"sigma {report.sigma:.4g}", **gain}, report.warnings)

    def quantization_input(self, image: np.ndarray, number: int) -> np.ndarray:
        return add_gaussian_noise(image, NOISE * float(np.abs(image).max()), np.random.default_rng(number))

    def quantization_loss(
        self, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], clean: Sequence[np.ndarray]
    ) -> float:
        """Return how much lower the mean PSNR is, the largest intensity of each image as its peak."""
        return _psnr(expected, clean) - _psnr(actual, clean)


def _psnr(outputs: Sequence[np.ndarray], clean: Sequence[np.ndarray]) -> float:
    pairs = zip(outputs, clean, strict=True)
    return float(np.mean([10 * np.log10(np.square(x.max()) / np.mean(np.square(y - x))) for y, x in pairs]))
