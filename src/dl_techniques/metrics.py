"""Metrics of segmentation, calibration and restoration over a data set; NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from dl_techniques.datasets.filters import filter_inside, gaussian_window
from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.errors import ArgumentError


class Confusion:
    """Confusion matrix over the pixels of a data set, with the scores that follow from it.

    The counts of all images are summed; the mean of scores per image is a different number. For independent channels
    use `LabelConfusion`.

    Args:
        classes: Number of classes.

    Attributes:
        counts: Pixels, `(true class, predicted class)`.
    """

    def __init__(self, classes: int) -> None:
        if classes < 2:
            raise ArgumentError("classes", "must be at least 2", classes)
        self.counts = np.zeros((classes, classes), "int64")

    def update(self, predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None = None) -> Confusion:
        """Add pixels and return the object itself.

        Args:
            predicted: Classes, integers or booleans, of any shape.
            true: The same for the truth.
            valid: Where pixels count, booleans of the same shape; everywhere if not given.

        Raises:
            ArgumentError: Shapes or types do not fit, or a pixel that counts is of no class.
        """
        classes = len(self.counts)
        true = _valid_values("true", true, predicted.shape, valid)
        predicted = _valid_values("predicted", predicted, predicted.shape, valid)
        for name, labels in (("predicted", predicted), ("true", true)):
            if labels.dtype.kind not in "iub":
                raise ArgumentError(name, "must be integers or booleans", f"dtype {labels.dtype}")
            if labels.size and not (0 <= labels.min() and labels.max() < classes):
                wrong = labels[(labels < 0) | (labels >= classes)][0]
                raise ArgumentError(name, f"must hold classes from 0 to {classes - 1} where it counts", wrong.item())
        pairs = true.astype("int64") * classes + predicted.astype("int64")
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        return self

    @property
    def occurs(self) -> np.ndarray:
        """Whether each class is in the truth or in the predictions."""
        return self._union > 0

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, in [0, 1]; 1 where it does not occur."""
        return np.where(self.occurs, np.diag(self.counts) / np.maximum(self._union, 1), 1.0)

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient of each class, in [0, 1]; 1 where it does not occur."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur; NaN where no pixel counts."""
        return float(self.iou[self.occurs].mean()) if self.occurs.any() else math.nan

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that occur; NaN where no pixel counts."""
        return float(self.dice[self.occurs].mean()) if self.occurs.any() else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the pixels whose class is correct; NaN where no pixel counts."""
        pixels = self.counts.sum()
        return float(np.trace(self.counts) / pixels) if pixels else math.nan

    @property
    def _union(self) -> np.ndarray:
        return self.counts.sum(axis=0) + self.counts.sum(axis=1) - np.diag(self.counts)


class LabelConfusion:
    """Confusion matrices of independent labels over the pixels of a data set.

    Args:
        labels: Number of labels.

    Attributes:
        parts: The matrix of each label; class 1 means that a pixel has it.
    """

    def __init__(self, labels: int) -> None:
        self.parts = [Confusion(2) for _ in range(labels)]

    def update(self, predicted: np.ndarray, true: np.ndarray, valid: np.ndarray) -> LabelConfusion:
        """Add pixels, `(…, labels)`, 0 or 1 where they count, and return the counts; see `Confusion.update`."""
        for label, part in enumerate(self.parts):
            part.update(predicted[..., label], true[..., label], valid[..., label])
        return self

    @property
    def counts(self) -> np.ndarray:
        """Pixels, `(label, truth, prediction)`."""
        return np.stack([part.counts for part in self.parts])

    @property
    def occurs(self) -> np.ndarray:
        """Whether each label is in the truth or in the predictions."""
        return np.array([part.occurs[1] for part in self.parts])

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each label, in [0, 1]; 1 where it does not occur."""
        return np.array([part.iou[1] for part in self.parts])

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient of each label, in [0, 1]; 1 where it does not occur."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def mean_iou(self) -> float:
        """Mean over the labels that occur; 1 where none does, NaN where no pixel counts."""
        return self._mean(self.iou)

    @property
    def mean_dice(self) -> float:
        """Mean over the labels that occur; 1 where none does, NaN where no pixel counts."""
        return self._mean(self.dice)

    @property
    def accuracy(self) -> float:
        """Share of correct answers to whether a pixel has a label; NaN where no pixel counts."""
        counts = self.counts
        return float(np.trace(counts, axis1=1, axis2=2).sum() / counts.sum()) if counts.sum() else math.nan

    def _mean(self, values: np.ndarray) -> float:
        if not self.counts.sum():
            return math.nan
        return float(values[self.occurs].mean()) if self.occurs.any() else 1.0


@dataclass(frozen=True)
class ReliabilityBin:
    """Pixels whose confidence is between two values; confidence and accuracy are NaN where there are none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Calibration:
    """Compare confidence with the share of correct predictions, over the pixels of a data set.

    With one class per pixel, the confidence is the highest probability, and correct is where its class is the true one.
    For one foreground, it is the probability of the foreground, and correct is where the foreground is.

    Args:
        bins: Number of bins of equal width.

    Reference: Guo et al. 2017, On calibration of modern neural networks, equations 2 and 3.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise ArgumentError("bins", "must be at least 1", bins)
        self.counts = np.zeros(bins, "int64")
        self._confidence = np.zeros(bins)
        self._correct = np.zeros(bins)

    def update(self, confidence: np.ndarray, correct: np.ndarray, valid: np.ndarray | None = None) -> Calibration:
        """Add confidences in [0, 1], whether each is correct, and where pixels count; return the object itself."""
        correct = _valid_values("correct", correct, confidence.shape, valid)
        confidence = _valid_values("confidence", confidence, confidence.shape, valid).astype("float64")
        outside = ~((confidence >= -1e-6) & (confidence <= 1 + 1e-6))  # allows for rounding
        if outside.any():
            raise ArgumentError("confidence", "must be in [0, 1]", float(confidence[outside][0]))
        bins = len(self.counts)
        place = np.clip((confidence * bins).astype("int64"), 0, bins - 1)
        self.counts += np.bincount(place, minlength=bins)
        self._confidence += np.bincount(place, confidence, bins)
        self._correct += np.bincount(place, correct, bins)
        return self

    @property
    def table(self) -> list[ReliabilityBin]:
        """The bins, lowest confidence first."""
        bins = len(self.counts)
        sums = zip(self.counts.tolist(), self._confidence.tolist(), self._correct.tolist(), strict=True)
        return [
            ReliabilityBin(i / bins, (i + 1) / bins, n, confidence / (n or math.nan), correct / (n or math.nan))
            for i, (n, confidence, correct) in enumerate(sums)
        ]

    @property
    def error(self) -> float:
        """Expected calibration error, the mean distance of confidence and accuracy; NaN where no pixel counts."""
        pixels = int(self.counts.sum())
        return float(np.abs(self._confidence - self._correct).sum() / pixels) if pixels else math.nan


def _valid_values(name: str, values: np.ndarray, shape: tuple[int, ...], valid: np.ndarray | None) -> np.ndarray:
    """Return the values that count, `(pixels,)`."""
    for argument, array in ((name, values), ("valid", valid)):
        if array is not None and array.shape != shape:
            raise ArgumentError(argument, f"must have the shape {shape}", f"shape {array.shape}")
    return values.ravel() if valid is None else values[valid.astype(bool)]


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean structural similarity of two images with values in [0, 1], in [-1, 1].

    Means, variances and covariance are weighed by a Gaussian window of 11×11 pixels with σ = 1.5; the mean is over the
    windows that lie wholly inside, and over channels. K1 = 0.01, K2 = 0.03.

    Args:
        image: `(height, width, channels)`, at least 11 pixels high and wide.
        reference: The same shape.

    Raises:
        ArgumentError: The shapes differ, or an image is smaller than the window.

    Reference: Wang et al. 2004, Image quality assessment, equation 13.
    """
    if image.shape != reference.shape:
        raise ArgumentError("image", f"must have the shape of the reference, {reference.shape}", image.shape)
    if image.ndim != 3 or min(image.shape[:2]) < 11:
        raise ArgumentError("image", "must be (height, width, channels) of at least 11x11 pixels", image.shape)
    x, y = image.astype("float64"), reference.astype("float64")
    window = gaussian_window(1.5, 5)
    mean_x, mean_y, xx, yy, xy = (filter_inside(moment, window) for moment in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return float(np.mean(luminance * structure))


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of two images with values in [0, 1]."""
    error = float(np.mean(np.square(np.subtract(image, reference, dtype="float64"))))
    return -10.0 * float(np.log10(error)) if error else float("inf")


def denoising_psnr(
    denoise: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray], sigma: float, seed: int = 0
) -> float:
    """Return the mean of `denoising_psnrs`."""
    return float(np.mean(denoising_psnrs(denoise, images, sigma, seed)))


def denoising_psnrs(
    denoise: Callable[[np.ndarray], np.ndarray], images: Iterable[np.ndarray], sigma: float, seed: int = 0
) -> list[float]:
    """Return the PSNR in dB of each image denoised, by the protocol of the literature.

    Noise is neither clipped nor rounded, and the output is clipped to [0, 1].

    Args:
        denoise: Maps `(height, width, channels)` to the same.
        images: Clean images with values in [0, 1], float32.
        sigma: Standard deviation of the noise, in units of 1/255.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    return [psnr(np.clip(denoise(add_gaussian_noise(image, sigma / 255, rng)), 0, 1), image) for image in images]


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
