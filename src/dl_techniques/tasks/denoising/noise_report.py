"""What can be said of noise, and of its removal, without knowing the clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dl_techniques.datasets.noise import estimate_sigma
from dl_techniques.images.display import centre
from dl_techniques.metrics import estimate_gain

INSPECTED = 768  # height and width of the centre on which noise is judged, in pixels
# Residuals of white Gaussian noise stay below these by a wide margin on natural images.
CORRELATED, BLOCKY, CLIPPED, BIASED = 0.15, 1.15, 0.02, 0.2


@dataclass(frozen=True)
class NoiseReport:
    """Noise of an image and how well it was removed, estimated from noisy and denoised image alone.

    Sigma is in the unit of the image, the gain in dB of PSNR (`None`: no noise), the correlation that of neighbouring
    residuals, the bias that of 16×16 pixels beyond what such noise explains, in sigma.
    """

    sigma: float
    gain: float | None
    correlation: float
    bias: float
    clipped: float
    warnings: tuple[str, ...]


def inspect_noise(noisy: np.ndarray, denoised: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> NoiseReport:
    """Estimate noise and gain, and warn where the noise is correlated, compressed, clipped or structured."""
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
        warnings.append(f"steps every 8 pixels ({blockiness:.1f}x): the model does not remove JPEG blocks")
    if clipped > CLIPPED:
        warnings.append(f"{clipped:.0%} of the pixels are clipped: noise there is one-sided")
    if bias > BIASED:
        warnings.append(f"local means changed ({bias:.2f} sigma): structure may have been removed")
    gain = estimate_gain(noisy, denoised, sigma, function) if sigma > 0 else None
    return NoiseReport(sigma, gain, correlation, bias, clipped, tuple(warnings))


def inspect_centre(pixels: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> NoiseReport:
    """Return what `inspect_noise` says of the centre of an image; samples that are not finite count as 0."""
    noisy = centre(pixels, INSPECTED).astype("float32")
    noisy = np.where(np.isfinite(noisy), noisy, 0)
    return inspect_noise(noisy, function(noisy), function)


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
