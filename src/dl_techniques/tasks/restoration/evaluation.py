"""Evaluation of restored images by PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.metrics import psnr, ssim
from dl_techniques.report import Table
from dl_techniques.tasks.base import Evaluation, Function, Sample

Similarity = tuple[float, float]  # PSNR in dB and SSIM; that of images below 11 pixels is NaN


@dataclass(frozen=True)
class RestorationEvaluation(Evaluation):
    """PSNR and SSIM of each image after and before; before is empty where images and targets differ in channels."""

    names: tuple[str, ...]
    after: tuple[Similarity, ...]
    before: tuple[Similarity, ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(value for value, _ in self.after)

    def figures(self) -> dict[str, Any]:
        return {"images": len(self.after), **_means(self.after, ""), **(_means(self.before, "_before"))}

    def logged(self) -> dict[str, float]:
        return dict(zip(("psnr", "ssim"), _mean(self.after), strict=True))

    def headline(self) -> dict[str, str]:
        figures = self.figures()
        shown = {"PSNR, dB": ("psnr_db", 2), "before": ("psnr_db_before", 2), "SSIM": ("ssim", 4)}
        return {name: f"{figures[key]:.{digits}f}" for name, (key, digits) in shown.items() if key in figures}

    def rows(self) -> list[dict[str, Any]]:
        rows = [{"image": n, "psnr_db": p, "ssim": s} for n, (p, s) in zip(self.names, self.after, strict=True)]
        for row, (before, _) in zip(rows, self.before, strict=False):
            row["psnr_db_before"] = before
        return rows

    def tables(self) -> list[Table]:
        rows = self.rows()
        header = list(rows[0]) if rows else []
        shown = [[str(row["image"]), *(f"{row[name]:.4g}" for name in header[1:])] for row in rows]
        return [Table("Images", header, shown)]


def evaluate(function: Function, samples: Iterable[Sample]) -> RestorationEvaluation:
    """Compare restored images with their targets."""
    names, after, before = [], [], []
    for sample in samples:
        names.append(sample.name)
        after.append(similarity(function(sample.image[None])[0], sample.target))
        if sample.image.shape == sample.target.shape:
            before.append(similarity(sample.image, sample.target))
    return RestorationEvaluation(tuple(names), tuple(after), tuple(before))


def similarity(image: np.ndarray, target: np.ndarray) -> Similarity:
    """Return PSNR in dB and SSIM of an image clipped to [0, 1]."""
    clipped = np.clip(image, 0, 1)
    return psnr(clipped, target), ssim(clipped, target) if min(target.shape[:2]) >= 11 else np.nan


def _mean(values: Iterable[Similarity]) -> Similarity:
    """Return mean PSNR and SSIM, each over the images that have one; NaN if none has."""
    decibels, shares = zip(*values, strict=True)
    measured = [value for value in shares if not np.isnan(value)]
    return float(np.mean(decibels)), float(np.mean(measured)) if measured else np.nan


def _means(values: tuple[Similarity, ...], ending: str) -> dict[str, float]:
    if not values:
        return {}
    named = zip((f"psnr_db{ending}", f"ssim{ending}"), _mean(values), strict=True)
    return {name: value for name, value in named if not np.isnan(value)}
