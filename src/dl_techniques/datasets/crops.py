"""Crops for `fit`, as Keras takes them; the rest of the package's data needs no Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
