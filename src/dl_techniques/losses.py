"""Losses for segmentation and restoration that Keras lacks, on all backends, computed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from dl_techniques.errors import ArgumentError
from dl_techniques.layers.pointwise import REGISTRY

ACTIVATIONS = ("sigmoid", "softmax")
TINY = 1e-6  # below any share of valid pixels, 4⁻ⁿ at the n-th coarser output


@keras.saving.register_keras_serializable(package=REGISTRY)
class SegmentationLoss(keras.losses.Loss):
    """Sum weighted overlap and cross-entropy losses of logits and class fractions, without ignored pixels.

    `dice · mean over classes of (1 − T) + cross_entropy · mean over valid pixels of F`, where v is the valid share of a
    pixel, p the probability and t the fraction of a class in it, TP = Σ v·min(p, t), FP = Σ v·max(p − t, 0),
    FN = Σ v·max(t − p, 0), T = (TP + s) / (TP + α·FP + β·FN + s), and F = |t − p|^γ · (−t·log p − (1 − t)·log(1 − p)),
    without its second part for `"softmax"`. With α = β = ½ that is soft Dice, with γ = 0 cross-entropy. β > α finds
    more small objects at the price of false positives; γ > 0 gives weight to pixels that are hard to classify.

    Args:
        activation: `"softmax"` where each pixel is of one class; `"sigmoid"` where channels are independent, or where
            one channel tells foreground from background.
        dice: Weight of the overlap.
        cross_entropy: Weight of the cross-entropy, or of the focal loss where `gamma` is above 0.
        gamma: Exponent γ of the focal loss.
        alpha: Weight α of false positives in the overlap.
        beta: Weight β of false negatives in the overlap.
        smooth: s, in pixels: s/α pixels found where there is nothing cost half of the overlap.
        over_batch: Whether to sum over the batch, which gives one loss, or over each image, which sample weights need;
            `y_true` can weigh pixels either way.
        class_weights: A weight per channel, of any scale; default: equal weights.
        reduction: Keras' reduction of the losses of the images.
        name: Name of the loss.

    Call arguments:
        y_true: `(batch, height, width, classes + 1)`: the fraction of each class among the valid parts of a pixel times
            the valid share of the pixel, and last that share, in [0, 1]. A plain pixel is one-hot and 1, an ignored one
            zeros; area means of such pixels are such pixels. See `training/supervision.py`.
        y_pred: `(batch, height, width, classes)`, logits, of any float type.

    Returns:
        The loss, at least 0; 0 without gradient where every pixel is ignored.

    Raises:
        ArgumentError: A setting is out of range, or targets, logits and class weights do not fit.

    Reference:
        Milletari et al. 2016, V-Net (Dice); Salehi et al. 2017, equation 3 (Tversky); Lin et al. 2017, equation 4.
        Deviation: min(p, t) in place of p·t (Wang et al. 2023, Dice semimetric losses) and |t − p| in place of 1 − p_t
        (Li et al. 2020, Generalized focal loss, equation 3). For t in {0, 1} they are the same; for the fractions of
        coarser outputs they are best at p = t, where the originals are best at p in {0, 1}.
    """

    def __init__(
        self,
        activation: Literal["sigmoid", "softmax"],
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        gamma: float = 0.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        over_batch: bool = True,
        class_weights: Sequence[float] | None = None,
        reduction: str = "sum_over_batch_size",
        name: str = "segmentation_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if activation not in ACTIVATIONS:
            raise ArgumentError("activation", f"must be one of {list(ACTIVATIONS)}", activation)
        weights = {"dice": dice, "cross_entropy": cross_entropy, "gamma": gamma, "alpha": alpha, "beta": beta}
        for argument, value in weights.items():
            _check_weight(argument, value)
        if not dice + cross_entropy > 0:
            raise ArgumentError("dice", "must be above 0 where cross_entropy is 0", dice)
        if not 0 < smooth < math.inf:
            raise ArgumentError("smooth", "must be above 0 and finite", smooth)
        for value in class_weights or ():
            _check_weight("class_weights", value)
        if class_weights is not None and not sum(class_weights) > 0:
            raise ArgumentError("class_weights", "must hold a number above 0", class_weights)
        self.activation = activation
        self.dice, self.cross_entropy = dice, cross_entropy
        self.gamma, self.alpha, self.beta, self.smooth = gamma, alpha, beta, smooth
        self.over_batch = over_batch
        self.class_weights = None if class_weights is None else tuple(float(value) for value in class_weights)

    def call(self, y_true, y_pred):
        self._check_channels(y_pred.shape[-1])
        _check_shape(y_true, (*y_pred.shape[:-1], y_pred.shape[-1] + 1))
        valid = y_true[..., -1:]  # (batch, height, width, 1)
        fractions = y_true[..., :-1] / ops.maximum(valid, TINY)
        log_probability = ops.log_softmax(y_pred, axis=-1) if self.activation == "softmax" else -ops.softplus(-y_pred)
        probability = ops.exp(log_probability)
        loss = 0.0
        if self.dice:
            loss += self.dice * self._overlap_loss(fractions, probability, valid)
        if self.cross_entropy:
            entropy = -fractions * log_probability
            if self.activation == "sigmoid":
                entropy += (1.0 - fractions) * ops.softplus(y_pred)
            if self.gamma:  # maximum: a root has no finite slope at 0
                entropy *= ops.power(ops.maximum(ops.abs(fractions - probability), TINY), self.gamma)
            loss += self.cross_entropy * self._pixel_mean(entropy, valid)
        return loss

    def _overlap_loss(self, fractions, probability, valid):
        both = self._sum(valid * ops.minimum(probability, fractions))  # (batch or 1, classes)
        only_predicted = self._sum(valid * ops.relu(probability - fractions))
        only_true = self._sum(valid * ops.relu(fractions - probability))
        wrong = self.alpha * only_predicted + self.beta * only_true
        return ops.mean(self._relative_weights() * wrong / (both + wrong + self.smooth), axis=-1)

    def _pixel_mean(self, entropy, valid):
        entropy = self._sum(valid * entropy) * self._relative_weights()  # (batch or 1, classes)
        combine = ops.sum if self.activation == "softmax" else ops.mean
        return combine(entropy, axis=-1) / ops.maximum(self._sum(valid)[:, 0], TINY)

    def _sum(self, values):
        """Return the sum over pixels, `(batch, channels)`, or over the batch too, `(1, channels)`."""
        sums = ops.sum(values, axis=(1, 2))
        return ops.sum(sums, axis=0, keepdims=True) if self.over_batch else sums

    def _relative_weights(self):
        """Return the weights of the classes with mean 1."""
        if self.class_weights is None:
            return 1.0
        mean = sum(self.class_weights) / len(self.class_weights)
        return ops.convert_to_tensor([value / mean for value in self.class_weights], dtype="float32")

    def _check_channels(self, classes: int) -> None:
        if self.activation == "softmax" and classes == 1:
            raise ArgumentError("activation", "must be 'sigmoid' for one channel", self.activation)
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ArgumentError("class_weights", f"must be {classes}, one per channel", self.class_weights)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": self.activation,
            "dice": self.dice,
            "cross_entropy": self.cross_entropy,
            "gamma": self.gamma,
            "alpha": self.alpha,
            "beta": self.beta,
            "smooth": self.smooth,
            "over_batch": self.over_batch,
            "class_weights": self.class_weights,
        }


@keras.saving.register_keras_serializable(package=REGISTRY)
class CharbonnierLoss(keras.losses.Loss):
    """Average √(d² + ε²) over all values, d the difference of image and target.

    Smooth near 0, absolute far from it: outliers pull less than in a squared error, and gradients of a perfect output
    are 0.

    Args:
        epsilon: ε, the transition between both, in the unit of the images; 0.001 is for intensities in [0, 1],
            a quarter of a grey level of 8 bits. Also the loss of a perfect output.
        reduction: Keras' reduction of the losses of the pixels.
        name: Name of the loss.

    Call arguments:
        y_true: `(batch, height, width, channels)`.
        y_pred: The same shape, of any float type.

    Raises:
        ArgumentError: `epsilon` is not above 0, or the shapes differ.

    Reference: Charbonnier et al. 1994; Lai et al. 2017, Deep Laplacian pyramid networks, section 3.3.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        reduction: str = "sum_over_batch_size",
        name: str = "charbonnier_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not 1e-18 < epsilon < math.inf:  # its square is a number in float32
            raise ArgumentError("epsilon", "must be above 0 and finite", epsilon)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        _check_shape(y_true, tuple(y_pred.shape))
        return ops.mean(ops.sqrt(ops.square(y_pred - y_true) + self.epsilon**2), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ArgumentError(name, "must be at least 0 and finite", value)


def _check_shape(y_true, expected: tuple[int | None, ...]) -> None:
    """Raise an error for targets that would be broadcast; unknown sizes pass."""
    shape = tuple(y_true.shape)
    known = [pair for pair in zip(shape, expected, strict=False) if None not in pair]
    if len(shape) != len(expected) or any(size != other for size, other in known):
        raise ArgumentError("y_true", f"must have the shape {expected} for this output", f"shape {shape}")
