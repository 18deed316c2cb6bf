"""Noise for training and measuring denoisers."""

from __future__ import annotations

import numpy as np


def add_gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return `image + N(0, sigma²)`, neither clipped nor rounded, as the literature's figures have it.

    Args:
        image: Any shape, floats.
        sigma: Standard deviation, in the unit of the image.
        rng: Source of the noise.
    """
    return image + image.dtype.type(sigma) * rng.standard_normal(image.shape, dtype="float32")
