"""Evaluation of a denoiser in training: PSNR at several noise levels, or the estimated gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dl_techniques.tasks.base import Evaluation

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class DenoisingEvaluation(Evaluation):
    """Mean PSNR at each level, or the estimated gain, in dB by name; the scores are those of each image."""

    images: int
    decibels: Mapping[str, float]
    scores: tuple[float, ...]

    def figures(self) -> dict[str, Any]:
        return {"images": self.images, **self.decibels}

    def logged(self) -> dict[str, float]:
        return dict(self.decibels)

    def headline(self) -> dict[str, str]:
        named = {name.replace("psnr_", "PSNR, sigma "): value for name, value in self.decibels.items()}
        return {f"{name}, dB": f"{value:.2f}" for name, value in named.items()}

    def describe(self, console: Console) -> None:
        shown = ", ".join(f"{name} {value:.2f} dB" for name, value in self.decibels.items())
        console.print(f"validation: {shown}", markup=False)
