"""Open settings of a run, resolved by its images and the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

from dl_techniques.datasets.augmentation import STRENGTHS, Augmentation
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.training.settings import PairedConfig

PIXELS_IN_A_STEP = 131_072
LARGEST_PATCH = 256

Config = TypeVar("Config", bound=PairedConfig)


def resolve_settings(config: Config, inspection: Inspection) -> Config:
    """Return the settings with nothing left open that the images or the machine decide."""
    patch = config.patch or choose_patch(config.depth, inspection.typical)
    symmetries = config.symmetries
    if symmetries == "auto":  # up and down differ in photographs
        symmetries = "mirror" if inspection.channels == 3 else "all"
    return replace(
        config,
        patch=patch,
        batch_size=config.batch_size or max(1, round(PIXELS_IN_A_STEP / patch**2)),
        symmetries=symmetries,
        precision=choose_precision(config.precision),
    )


def choose_patch(depth: int, typical: int) -> int:
    """Return the height and width of crops: as large as half of the images, within limits, whole at every level.

    Smaller images are reflected at their borders.
    """
    multiple = 2**depth
    return max(multiple, min(LARGEST_PATCH, typical) // multiple * multiple)


def choose_precision(precision: Literal["auto", "float32", "mixed_bfloat16"]) -> Literal["float32", "mixed_bfloat16"]:
    """Return the precision of a computation, `"auto"` being mixed on a GPU."""
    if precision == "auto":
        return "mixed_bfloat16" if _on_gpu() else "float32"
    return precision


def choose_augmentation(config: PairedConfig) -> Augmentation:
    """Return the random changes of crops: as strong as asked for, without turns where up and down differ."""
    chosen = STRENGTHS[config.augment]
    return replace(chosen, vertical_flip=0.0, rotation=0.0) if config.symmetries == "mirror" else chosen


def _on_gpu() -> bool:
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())
