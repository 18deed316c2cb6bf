"""What can be said of noise, and of its removal, without knowing the clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Residuals of white Gaussian noise stay below these by a wide margin on natural images.
CORRELATED, BLOCKY, CLIPPED, BIASED = 0.15, 1.15, 0.02, 0.2


@dataclass(frozen=True)
class NoiseReport:
    """Noise of an image and how well it was removed, estimated from noisy and denoised image alone.

    Attributes:
        sigma: Estimated standard deviation of the noise, in the unit of the image.
        gain: Estimated gain in PSNR, in dB; `None` where there is no noise to remove.
        correlation: Largest correlation of neighbouring residuals, 0 for white noise or below.
        bias: Mean of the residual over 16×16 pixels beyond what noise of this level explains, in units of sigma.
        clipped: Share of the pixels at the lowest or highest value.
        warnings: Why the noise is not what the model knows, in words; empty if it seems to be.
    """

    sigma: float
    gain: float | None
    correlation: float
    bias: float
    clipped: float
    warnings: tuple[str, ...]


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


def estimate_gain(
    noisy: np.ndarray, denoised: np.ndarray, sigma: float, function: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Return the gain in PSNR by Stein's unbiased risk estimate, the divergence measured with one random probe.

    `MSE ≈ ‖y − f(y)‖²/N − σ² + 2σ²·div f(y)/N`, gain = `10 log₁₀(σ² / MSE)`.

    Args:
        noisy: `(height, width, channels)`.
        denoised: `function(noisy)`.
        sigma: Standard deviation of the noise, above 0.
        function: The denoiser.

    Reference: Ramani et al. 2008, Monte-Carlo SURE, eq. 14.
    """
    probe = np.random.default_rng(0).choice(np.array([-1.0, 1.0], "float32"), size=noisy.shape)
    step = np.float32(0.1 * sigma)
    change = function(noisy + step * probe).astype("float64") - denoised
    divergence = float(np.mean(probe * change) / step)
    residual = float(np.mean(np.square(noisy.astype("float64") - denoised)))
    error = residual - sigma**2 + 2 * sigma**2 * divergence
    return float(10 * np.log10(sigma**2 / max(error, 1e-4 * sigma**2)))


def inspect_noise(noisy: np.ndarray, denoised: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> NoiseReport:
    """Estimate noise and gain, and warn where the noise is correlated, compressed, clipped or structured.

    Args:
        noisy: `(height, width, channels)`, float32, any unit.
        denoised: `function(noisy)`.
        function: The denoiser, called once more.
    """
    residual = noisy.astype("float64") - denoised
    spread = float(residual.std())
    clipped = _clipped_share(noisy)
    if spread <= 1e-6 * float(np.abs(noisy).max(initial=0.0)) or min(noisy.shape[:2]) < 16:
        return NoiseReport(estimate_sigma(noisy), None, 0.0, 0.0, clipped, ())
    centered = (residual - residual.mean(axis=(0, 1))) / spread
    vertical, horizontal = np.mean(centered[1:] * centered[:-1]), np.mean(centered[:, 1:] * centered[:, :-1])
    correlation = float(max(vertical, horizontal, 0.0))
    bias = _local_bias(residual) / spread
    sigma = spread if correlation > CORRELATED else estimate_sigma(noisy)
    warnings = []
    if correlation > CORRELATED:
        warnings.append(f"neighbouring residuals correlate ({correlation:.2f}): the noise is not white")
    if (blockiness := _blockiness(noisy)) > BLOCKY:
        warnings.append(f"steps every 8 pixels ({blockiness:.1f}x): JPEG blocks are not noise to this model")
    if clipped > CLIPPED:
        warnings.append(f"{clipped:.0%} of the pixels are clipped: noise there is one-sided")
    if bias > BIASED:
        warnings.append(f"local means changed ({bias:.2f} sigma): structure may have been removed")
    gain = estimate_gain(noisy, denoised, sigma, function) if sigma > 0 else None
    return NoiseReport(sigma, gain, correlation, bias, clipped, tuple(warnings))


def _clipped_share(image: np.ndarray) -> float:
    low, high = image.min(), image.max()
    return float(np.mean((image == low) | (image == high))) if high > low else 0.0


def _local_bias(residual: np.ndarray, block: int = 16) -> float:
    """Return the root mean square of the residual's block means beyond what white noise of its level gives them."""
    height, width = (extent // block * block for extent in residual.shape[:2])
    blocks = residual[:height, :width].reshape(height // block, block, width // block, block, -1)
    excess = np.mean(np.square(blocks.mean(axis=(1, 3)))) - residual.var() / block**2
    return float(np.sqrt(max(excess, 0.0)))


def _blockiness(image: np.ndarray) -> float:
    """Return how much larger steps across the borders of 8×8 blocks are than the other steps."""
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype("float64"), axis=axis)).mean(axis=(1 - axis, 2))
        border = np.arange(len(steps)) % 8 == 7
        inside = float(steps[~border].mean())
        edge = float(steps[border].mean()) if border.any() else inside
        ratios.append(edge / inside if inside else (np.inf if edge else 1.0))
    return min(ratios)
