"""Training data of segmenters: crops and their targets."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

import numpy as np

from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.batches import random_crop, seeded_batches
from dl_techniques.tasks.base import Sample
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes
from dl_techniques.training.distribution import batch_share
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.supervision import channel_target, class_target, supervision_weights, target_pyramid


def segmentation_batches(
    samples: Sequence[Sample],
    classes: Classes,
    augmentation: Augmentation,
    config: SegmentationConfig,
    done: int = 0,
) -> Iterator[tuple]:
    """Yield batches of augmented crops and their targets; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32, and a tuple of `depth` targets, finest first, `(batch, patch /
    2ⁿ, patch / 2ⁿ, classes + 1)`: fractions of the classes, and last of the pixels that count. With
    `anneal_supervision`, a tuple of the outputs' weights in the loss follows, `(batch,)` each: they
    depend on the number of the batch alone, as resuming requires. The first `done` batches are skipped.
    """
    patch, batch_size = typing.cast("tuple[int, int]", (config.patch, config.batch_size))

    def make_target(labels: np.ndarray) -> np.ndarray:
        if classes.outputs == 1 or classes.labels:
            return channel_target(labels, ignore=IGNORED)
        return class_target(labels, classes.count, ignore=IGNORED)

    def crop(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        sample = samples[int(rng.integers(len(samples)))]
        image, mask = random_crop(sample.image, sample.target, patch, rng)
        image, labels = augmentation(image, mask if classes.labels else mask[..., None], rng)
        return image, make_target(labels)

    crops = seeded_batches(crop, config.steps, batch_size, config.seed, done, threads=2, share=batch_share())
    for step, (images, targets) in enumerate(crops, done):
        pyramid = tuple(target_pyramid(targets, config.depth))
        if config.anneal_supervision:
            weights = supervision_weights(config.depth, step / max(config.steps - 1, 1))
            yield images, pyramid, tuple(np.full(len(images), weight, "float32") for weight in weights)
        else:
            yield images, pyramid
