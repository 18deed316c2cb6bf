"""What segmenters are trained on: samples from files, crops from samples, targets from crops."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.batches import random_crop, seeded_batches
from dl_techniques.datasets.inspection import read_pair
from dl_techniques.datasets.lazy import DecodedCache
from dl_techniques.datasets.normalization import standardize
from dl_techniques.datasets.pairs import Pair
from dl_techniques.images.source import Channels
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes
from dl_techniques.tasks.segmentation.inspection import reader_of
from dl_techniques.training.distribution import batch_share
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.supervision import channel_target, class_target, supervision_weights, target_pyramid


@dataclass(frozen=True)
class SegmentationSample:
    """An image and its classes.

    Attributes:
        name: Stem of the image's file.
        image: `(height, width, channels)`, float32, as the model wants it.
        classes: `(height, width)`, uint8, class indices, `IGNORED` where a pixel does not count; or labels, `(height,
            width, labels)`, see `read_labels`.
    """

    name: str
    image: np.ndarray
    classes: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.image.nbytes + self.classes.nbytes


def read_sample(
    pair: Pair,
    classes: Classes,
    channels: Channels = "declared",
    normalize: Callable[[np.ndarray], np.ndarray] = standardize,
    decoded: DecodedCache | None = None,
) -> SegmentationSample:
    """Read an image and its mask.

    Args:
        pair: Their files.
        classes: What the masks mean.
        channels: Which samples of a pixel are channels; see `read_image`.
        normalize: What the model wants done with the pixels; returns float32.
        decoded: Where they may be already.

    Raises:
        FileError: A file is broken, or the mask holds a value that is no class.
    """
    pixels, target = (decoded and decoded.pop(pair)) or read_pair(pair, reader_of(classes), channels)
    mask = classes.encode(target if classes.labels else target[..., 0], pair.words(pair.target))
    return SegmentationSample(pair.name, normalize(pixels), mask)


def segmentation_batches(
    samples: Sequence[SegmentationSample],
    classes: Classes,
    augmentation: Augmentation,
    config: SegmentationConfig,
    done: int = 0,
) -> Iterator[tuple]:
    """Yield batches of augmented crops and their targets; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32, and a tuple of `depth` targets, finest first,
    `(batch, patch / 2ⁿ, patch / 2ⁿ, classes + 1)`: fractions of the classes, and last of the pixels that count. With
    `anneal_supervision`, a tuple of the outputs' weights in the loss follows, `(batch,)` each: they come with the
    batch, so that they depend on its number alone, as a run that resumes needs it.

    Args:
        samples: To draw from.
        classes: What the masks mean.
        augmentation: Random changes of a crop.
        config: Settled patch and batch size; steps, depth, seed and whether weights are annealed.
        done: Batches to leave out at the beginning.
    """

    patch, batch_size = typing.cast("tuple[int, int]", (config.patch, config.batch_size))

    def make_target(labels: np.ndarray) -> np.ndarray:
        if classes.outputs == 1 or classes.labels:
            return channel_target(labels, ignore=IGNORED)
        return class_target(labels, classes.count, ignore=IGNORED)

    def crop(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        sample = samples[int(rng.integers(len(samples)))]
        image, mask = random_crop(sample.image, sample.classes, patch, rng)
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
