"""Overlap of predicted with true masks over a whole set, and the distance of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dl_techniques.data.noise import add_gaussian_noise


@dataclass(frozen=True)
class Overlap:
    """Agreement of two masks, or of two sets of masks pixel by pixel.

    Attributes:
        both: Pixels in prediction and truth.
        only_predicted: Pixels in the prediction alone.
        only_true: Pixels in the truth alone.
    """

    both: int = 0
    only_predicted: int = 0
    only_true: int = 0

    @classmethod
    def of(cls, prediction: np.ndarray, truth: np.ndarray) -> Overlap:
        """Count the pixels of two boolean masks of the same shape."""
        return cls(int(np.sum(prediction & truth)), int(np.sum(prediction & ~truth)), int(np.sum(~prediction & truth)))

    @classmethod
    def total(cls, overlaps: Iterable[Overlap]) -> Overlap:
        """Add the counts of many images: the overlap of the whole set."""
        overlaps = list(overlaps)
        return cls(
            sum(one.both for one in overlaps),
            sum(one.only_predicted for one in overlaps),
            sum(one.only_true for one in overlaps),
        )

    @property
    def dice(self) -> float:
        """Dice coefficient in [0, 1]; 1 where both masks are empty."""
        size = 2 * self.both + self.only_predicted + self.only_true
        return 2 * self.both / size if size else 1.0

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 1 where both masks are empty."""
        union = self.both + self.only_predicted + self.only_true
        return self.both / union if union else 1.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of two images with values in [0, 1]."""
    error = float(np.mean(np.square(np.subtract(image, reference, dtype="float64"))))
    return -10.0 * float(np.log10(error)) if error else float("inf")


def denoising_psnr(
    denoise: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray], sigma: float, seed: int = 0
) -> float:
    """Return the mean PSNR in dB of a denoiser over images, by the protocol of the literature.

    Noise is neither clipped nor rounded, the output is clipped to [0, 1], and the mean is over the images' PSNR.

    Args:
        denoise: Maps `(height, width, channels)` to the same.
        images: Clean images with values in [0, 1], float32.
        sigma: Standard deviation of the noise, in units of 1/255.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    values = [psnr(np.clip(denoise(add_gaussian_noise(image, sigma / 255, rng)), 0, 1), image) for image in images]
    return float(np.mean(values))
