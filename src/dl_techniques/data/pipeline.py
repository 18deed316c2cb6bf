"""Samples to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np


class RandomCrops(keras.utils.PyDataset):
    """Batches of random crops, flipped and turned, the same for the same seed and epoch.

    Args:
        images: `(height, width, channels)` arrays.
        masks: Arrays of the same heights and widths, cropped and turned along.
        size: Height and width of a crop, in pixels.
        batch_size: Crops in a batch.
        steps: Batches in an epoch.
        seed: Seed of all choices.
        make_targets: What turns a batch of masks, `(batch, size, size, channels)`, into the model's targets.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        size: int,
        batch_size: int,
        steps: int,
        seed: int,
        make_targets: Callable[[np.ndarray], object],
    ) -> None:
        super().__init__()
        self.images, self.masks = images, masks
        self.size, self.batch_size, self.steps, self.seed = size, batch_size, steps, seed
        self.make_targets = make_targets
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int):
        rng = np.random.default_rng((self.seed, self.epoch, index))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        images, masks = (np.stack(arrays) for arrays in zip(*crops, strict=True))
        return images, self.make_targets(masks)

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        index = int(rng.integers(len(self.images)))
        height, width, _ = self.images[index].shape
        top, left = (int(rng.integers(0, extent - self.size + 1)) for extent in (height, width))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def cut(array: np.ndarray) -> np.ndarray:
            crop = np.rot90(array[top : top + self.size, left : left + self.size], turns)
            return crop[:, ::-1] if flip else crop

        return cut(self.images[index]), cut(self.masks[index])


def seeded_batches(
    make_sample: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    steps: int,
    batch_size: int,
    seed: int,
    done: int = 0,
    threads: int = 1,
) -> Iterator[tuple]:
    """Yield batches of random samples; batch n depends on the seed and n alone, whatever was drawn before it.

    Args:
        make_sample: Makes a sample, a tuple of arrays, from a source of randomness.
        steps: Number of batches in all.
        batch_size: Samples in a batch.
        seed: Seed.
        done: Batches to leave out at the beginning, without making them.
        threads: Threads that make samples, ahead of their use.
    """
    import grain.python as grain

    class Sample(grain.RandomMapTransform):
        def random_map(self, element: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
            return make_sample(rng)

    batches = grain.MapDataset.range(steps * batch_size).seed(seed).random_map(Sample()).batch(batch_size)[done:]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))


def random_crop(
    image: np.ndarray, target: np.ndarray, patch: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square out of an image and its target; what is smaller is reflected at its borders first.

    Args:
        image: `(height, width, channels)`.
        target: `(height, width)` or `(height, width, channels)`.
        patch: Height and width of the square.
        rng: Source of its place.
    """
    missing = [max(patch - extent, 0) for extent in image.shape[:2]]
    if any(missing):
        pads = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
        image, target = (np.pad(x, pads + [(0, 0)] * (x.ndim - 2), mode="symmetric") for x in (image, target))
    top, left = (int(rng.integers(extent - patch + 1)) for extent in image.shape[:2])
    window = slice(top, top + patch), slice(left, left + patch)
    return image[window], target[window]
