"""Samples to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

AHEAD = 4  # batches that each thread makes ahead of their use


def seeded_batches(
    make_sample: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    steps: int,
    batch_size: int,
    seed: int,
    done: int = 0,
    threads: int = 1,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple]:
    """Yield batches of random samples; batch n depends on the seed and n alone, whatever was drawn before it.

    Args:
        make_sample: Makes a sample, a tuple of arrays, from a source of randomness.
        steps: Number of batches in all.
        batch_size: LazyDataset in a batch.
        seed: Seed.
        done: Batches to leave out at the beginning, without making them.
        threads: Threads that make samples, ahead of their use.
        share: Number of a part of every batch, from 0, and of all parts, which are equal; the rest is not made.
    """
    import grain.python as grain

    class Sample(grain.RandomMapTransform):
        def random_map(self, element: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
            return make_sample(rng)

    part, parts = share
    samples = grain.MapDataset.range(steps * batch_size).seed(seed).random_map(Sample())
    batches = samples.batch(batch_size // parts)[done * parts + part :: parts]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads))


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
