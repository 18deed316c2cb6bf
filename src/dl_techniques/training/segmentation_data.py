"""What segmenters are trained on: samples from files, crops from samples, targets from crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.data.augment import Augmentation
from dl_techniques.data.files import read_image
from dl_techniques.data.masks import IGNORED, Classes, choose_classes, read_mask
from dl_techniques.data.normalization import standardize
from dl_techniques.data.pairs import Pair
from dl_techniques.data.pipeline import random_crop, seeded_batches
from dl_techniques.training.inspection import Inspection, describe_classes, find_and_inspect
from dl_techniques.training.settings import SegmentationConfig
from dl_techniques.training.supervision import channel_target, class_target, target_pyramid

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class SegmentationSample:
    """An image and its classes.

    Attributes:
        name: Stem of the image's file.
        image: `(height, width, channels)`, float32, as the model wants it.
        classes: `(height, width)`, uint8, class indices, `IGNORED` where a pixel does not count.
    """

    name: str
    image: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class SegmentationData:
    """What a run trains and validates on.

    Attributes:
        inspection: Of both sides.
        classes: What the masks mean.
        training: Samples.
        validation: Samples.
    """

    inspection: Inspection
    classes: Classes
    training: list[SegmentationSample]
    validation: list[SegmentationSample]


def load_data(config: SegmentationConfig, console: Console) -> SegmentationData:
    """Find, split, inspect and read the images and masks of a run.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """
    count, inspection = find_and_inspect(config, config.masks, config.val_masks, console, masks=True)
    classes = choose_classes(inspection.counts, config.mask_kind, config.classes, config.ignore)
    describe_classes(inspection, classes, console)
    samples = [read_sample(facts.pair, classes) for facts in inspection.facts]
    return SegmentationData(inspection, classes, samples[:count], samples[count:])


def read_sample(
    pair: Pair, classes: Classes, normalize: Callable[[np.ndarray], np.ndarray] = standardize
) -> SegmentationSample:
    """Read an image and its mask.

    Args:
        pair: Their files.
        classes: What the masks mean.
        normalize: What the model wants done with the pixels; returns float32.

    Raises:
        FileError: A file is broken, or the mask holds a value that is no class.
    """
    mask = classes.encode(read_mask(pair.target), pair.target)
    return SegmentationSample(pair.name, normalize(read_image(pair.image).pixels), mask)


def segmentation_batches(
    samples: Sequence[SegmentationSample],
    classes: Classes,
    augmentation: Augmentation,
    patch: int,
    batch_size: int,
    outputs: int,
    steps: int,
    seed: int,
    done: int = 0,
) -> Iterator[tuple]:
    """Yield batches of augmented crops and their targets; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32, and a tuple of `outputs` targets, finest first,
    `(batch, patch / 2ⁿ, patch / 2ⁿ, classes + 1)`: fractions of the classes, and last of the pixels that count.

    Args:
        samples: To draw from.
        classes: What the masks mean.
        augmentation: Random changes of a crop.
        patch: Height and width of a crop.
        batch_size: Crops in a batch.
        outputs: Supervised outputs of the model.
        steps: Batches in all.
        seed: Seed.
        done: Batches to leave out at the beginning.
    """

    def make_target(labels: np.ndarray) -> np.ndarray:
        if classes.outputs == 1:
            return channel_target(labels, ignore=IGNORED)
        return class_target(labels, classes.count, ignore=IGNORED)

    def crop(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        sample = samples[int(rng.integers(len(samples)))]
        image, mask = random_crop(sample.image, sample.classes, patch, rng)
        image, labels = augmentation(image, mask[..., None], rng)
        return image, make_target(labels)

    for images, targets in seeded_batches(crop, steps, batch_size, seed, done, threads=2):
        yield images, tuple(target_pyramid(targets, outputs))
