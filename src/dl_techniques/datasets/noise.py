"""Noise for training and measuring denoisers, and how much of it there is."""

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


def add_poisson_gaussian_noise(image: np.ndarray, gain: float, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return `gain · Poisson(image / gain) + N(0, sigma²)`: what a camera that counts photons reads out.

    Args:
        image: Any shape, float32, at least 0.
        gain: Intensity of one photon, in the unit of the image; 0 for no shot noise.
        sigma: Standard deviation of the read noise, in the unit of the image.
        rng: Source of the noise.

    Reference: Foi et al. 2008, Practical Poissonian-Gaussian noise modeling, equation 1.
    """
    counted = np.float32(gain) * rng.poisson(image / gain).astype("float32") if gain > 0 else image
    return add_gaussian_noise(counted, sigma, rng)


def recorrupt(noisy: np.ndarray, sigma: float, rng: np.random.Generator, ratio: float = 0.5) -> tuple:
    """Return two noisy images whose noise is independent, from one: y + ratio·n and y − n / ratio, n ~ N(0, sigma²).

    The squared error between what a network makes of the first and the second is, in expectation, its error from the
    clean image plus a constant: it learns from noisy images alone.

    Args:
        noisy: Any shape, float32; white Gaussian noise of deviation `sigma` on what is not known.
        sigma: Standard deviation of the noise, in the unit of the image.
        rng: Source of the noise.
        ratio: Noise added to the first, as a share of what is there.

    Reference: Pang et al. 2021, Recorrupted-to-recorrupted, equation 7.
    """
    noise = np.float32(sigma) * rng.standard_normal(noisy.shape, dtype="float32")
    return noisy + np.float32(ratio) * noise, noisy - noise / np.float32(ratio)


def estimate_sigma(image: np.ndarray) -> float:
    """Return the standard deviation of white noise from the finest diagonal details, the mean over channels.

    Args:
        image: `(height, width, channels)`, any unit; below 2×2 pixels there is no detail and the answer is 0.

    Reference: Donoho & Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage: median absolute deviation of
    the Haar wavelet's diagonal coefficients over 0.6745.
    """
    height, width = (extent // 2 * 2 for extent in image.shape[:2])
    if not height or not width:
        return 0.0
    x = image[:height, :width].astype("float64")
    details = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
    return float(np.mean(np.median(np.abs(details), axis=(0, 1)) / 0.6745))
