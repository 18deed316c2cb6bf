"""Gaussian filters of images."""

from __future__ import annotations

import numpy as np


def gaussian_window(sigma: float, reach: int) -> np.ndarray:
    """Return a sampled Gaussian of sum 1, `(2·reach + 1,)`, float64; `sigma` and `reach` in pixels."""
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    return weights / weights.sum()


def filter_inside(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Weigh the neighbours of each pixel along both axes, where the window lies inside the image."""
    weights = window.astype(image.dtype)
    height, width = (extent - len(weights) + 1 for extent in image.shape[:2])
    rows = np.zeros((height, *image.shape[1:]), image.dtype)
    for offset, weight in enumerate(weights):
        rows += weight * image[offset : offset + height]
    filtered = np.zeros((height, width, *image.shape[2:]), image.dtype)
    for offset, weight in enumerate(weights):
        filtered += weight * rows[:, offset : offset + width]
    return filtered
