"""What the settings of a run leave open, decided by its images."""

from __future__ import annotations

from dl_techniques.data.augment import Augmentation
from dl_techniques.training.inspection import Inspection
from dl_techniques.training.settings import PairedConfig

PIXELS_IN_A_STEP = 131_072
LARGEST_PATCH = 256


def choose_patch(config: PairedConfig, inspection: Inspection) -> tuple[int, int]:
    """Return the patch size and the number of patches in a step: those of the settings, or what suits the images."""
    multiple = 2**config.depth
    patch = config.patch or max(multiple, min(LARGEST_PATCH, inspection.smallest) // multiple * multiple)
    return patch, config.batch_size or max(1, round(PIXELS_IN_A_STEP / patch**2))


def choose_augmentation(config: PairedConfig, inspection: Inspection) -> Augmentation:
    """Return the random changes of crops: without turns where up and down differ."""
    upright = config.symmetries == "mirror" or (config.symmetries == "auto" and inspection.channels > 1)
    return Augmentation(upend=0.0, turn=0.0) if upright else Augmentation()
