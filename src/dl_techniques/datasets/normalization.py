"""Intensities of any unit to those that a network expects."""

from __future__ import annotations

import numpy as np

from dl_techniques.images.files import unit_range


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


def in_unit(image: np.ndarray, largest: float) -> np.ndarray:
    """Return an image as float32, floats divided by `largest` unless it is 0, integers by the largest of their type."""
    return (image / (largest or 1.0)).astype("float32") if image.dtype.kind == "f" else unit_range(image)
