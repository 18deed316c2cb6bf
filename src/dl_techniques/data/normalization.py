"""Intensities of any unit to those that a network expects."""

from __future__ import annotations

import numpy as np


def standardize(pixels: np.ndarray) -> np.ndarray:
    """Return an image with mean 0 and variance 1 over all its samples, so that units and exposure do not matter.

    Args:
        pixels: `(height, width, channels)`, integers or floats, finite.

    Returns:
        The same shape, float32; zeros if the image is of one value.
    """
    if pixels.min() == pixels.max():
        return np.zeros(pixels.shape, "float32")
    x = pixels.astype("float64")
    return ((x - x.mean()) / x.std()).astype("float32")
