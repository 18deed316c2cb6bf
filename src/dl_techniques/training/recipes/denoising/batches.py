"""Training data of denoisers: images, patches and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dl_techniques.datasets.batches import seeded_batches
from dl_techniques.datasets.inspection import Split
from dl_techniques.datasets.noise import add_gaussian_noise, add_poisson_gaussian_noise, recorrupt
from dl_techniques.datasets.pairs import Pair, find_singles, split_pairs
from dl_techniques.errors import FileError
from dl_techniques.training.distribution import batch_share
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig, Phase


@dataclass(frozen=True)
class DenoisingSample:
    """A named image, float32, integers scaled to [0, 1], and the standard deviation of its noise; 0 if clean."""

    name: str
    image: np.ndarray
    sigma: float

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.image.nbytes


def find_training_images(config: DenoisingConfig) -> tuple[list[Pair], list[Pair] | Split]:
    """Return the images to train on and those to validate on, or what splits the pages of the first.

    Raises:
        FileError: Images are missing, or none is left to train on.
        ArgumentError: The groups cannot be split.
    """

    def split(pages: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        if config.held_out >= len(pages):
            reason = f"holds {len(pages)} images; {config.held_out} are held out and none is left to train on."
            raise FileError(config.images, reason, "Add images or hold out fewer.")
        if config.group_regex is not None:
            return split_pairs(pages, config.held_out / len(pages), config.seed, config.group_regex)
        return pages[config.held_out :], pages[: config.held_out]

    return find_singles(config.images), split if config.val_images is None else find_singles(config.val_images)


MakePair = Callable[[np.ndarray, float, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def pair_function(config: DenoisingConfig) -> MakePair:
    """Return the function that makes input and target of a crop, given the standard deviation of its noise."""
    if config.noisy_only:
        return recorrupt

    def corrupt(crop: np.ndarray, _: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sigma = rng.uniform(0.0, config.sigma) / 255
        if config.gain == 0:
            return add_gaussian_noise(crop, sigma, rng), crop
        return add_poisson_gaussian_noise(crop, rng.uniform(0.0, config.gain) / 255, sigma, rng), crop

    return corrupt


def training_patches(
    samples: Sequence[DenoisingSample], phase: Phase, seed: tuple[int, int], make_pair: MakePair, done: int = 0
) -> Iterator[tuple]:
    """Yield a phase's remaining batches of inputs and targets; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32; `make_pair` makes input and target of a crop.
    """
    size = phase.patch

    def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sample = samples[int(rng.integers(len(samples)))]
        top, left = (int(rng.integers(extent - size + 1)) for extent in sample.image.shape[:2])
        crop = np.rot90(sample.image[top : top + size, left : left + size], int(rng.integers(4)))
        return make_pair(crop[:, ::-1] if rng.integers(2) else crop, sample.sigma, rng)

    steps, entropy = phase.last - phase.first, seed[0] + 1_000_003 * seed[1]
    return seeded_batches(pair, steps, phase.batch_size, entropy, done, share=batch_share())
