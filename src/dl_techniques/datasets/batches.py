"""Batches of random samples, made ahead of their use by threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

AHEAD = 4  # batches per thread that are made ahead of their use


def seeded_batches(
    make_sample: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    steps: int,
    batch_size: int,
    seed: int,
    done: int = 0,
    threads: int = 1,
    share: tuple[int, int] = (0, 1),
) -> Generator[tuple[np.ndarray, ...], None, None]:
    """Yield batches of random samples; batch n depends on the seed and n alone, whatever was drawn before it.

    Args:
        make_sample: Makes a sample, a tuple of arrays, from a random generator.
        steps: Number of batches in all.
        batch_size: Samples in a batch.
        seed: Seed, at least 0.
        done: Batches to skip at the beginning, without making them.
        threads: Threads that make batches ahead of their use.
        share: Index of this process's part of every batch, and the number of parts, which are equal.
    """
    part, parts = share
    size = batch_size // parts

    def make_batch(number: int) -> tuple[np.ndarray, ...]:
        first = number * batch_size + part * size
        samples = [make_sample(np.random.default_rng((seed, index))) for index in range(first, first + size)]
        return tuple(np.stack(arrays) for arrays in zip(*samples, strict=True))

    numbers = iter(range(done, steps))
    pool = ThreadPoolExecutor(threads, "batches")
    try:
        ahead = deque(pool.submit(make_batch, number) for number in itertools.islice(numbers, AHEAD * threads))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(make_batch, number) for number in itertools.islice(numbers, 1))
            yield batch
    finally:  # also when the consumer stops early, or a sample cannot be made
        pool.shutdown(wait=False, cancel_futures=True)  # may run on a thread of TensorFlow, which must not wait


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
