"""A blind denoiser as the prior of plug-and-play restoration: inpainting, deblurring, any known degradation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.engines.engine import Engine
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.predictor import Predictor

Prior = Callable[[np.ndarray, float], np.ndarray]


def denoise_prior(engine: Engine, seed: int = 0) -> Prior:
    """Return D(x, σ), the denoiser of a chosen level that plug-and-play methods iterate, from one that is blind.

    A blind denoiser removes the noise it finds, and an iterate has none to find, or not Gaussian noise. So D adds the
    noise it is to remove: D(x, σ) = f(x + σ·n), n ~ N(0, 1), an unbiased sample of the denoiser at level σ about x
    (Renaud et al. 2024, "Plug-and-Play image restoration with stochastic denoising regularization", ICML, eq. 7). As f
    is homogeneous, D(a·x, a·σ) = a·D(x, σ): σ is in the unit of the image, whatever that is.

    Args:
        engine: A bias-free denoiser: `load_engine("denoise-gray")`.
        seed: Seed of the noise; every call draws anew from one stream.

    Returns:
        A function of an image, `(height, width, channels)`, floats of any range, and of σ ≥ 0 in the image's unit. It
        returns the denoised image, of the same shape, type and unit. It raises `ArgumentError` for a negative σ, or an
        image that is not of floats or does not fit the model.
    """
    rng, predictor = np.random.default_rng(seed), Predictor(engine, task="denoise")

    def prior(image: np.ndarray, sigma: float) -> np.ndarray:
        if not 0 <= sigma < np.inf:
            raise ArgumentError("sigma", "must be a finite number of at least 0", sigma)
        if np.asarray(image).dtype.kind != "f":
            raise ArgumentError("image", "must be of floats", np.asarray(image).dtype)
        return predictor(add_gaussian_noise(image, sigma, rng)).pixels

    return prior
