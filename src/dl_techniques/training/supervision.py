"""Targets and weights for the outputs of a deeply supervised model.

Reference: Lee et al. 2015, Deeply-Supervised Nets.
"""

from __future__ import annotations

import numpy as np

from dl_techniques.errors import ArgumentError


def class_target(labels: np.ndarray, classes: int, ignore: int | None = None) -> np.ndarray:
    """Return the target of `SegmentationLoss("softmax")`: one-hot classes, then 1; zeros where a pixel is ignored.

    Args:
        labels: `(…, height, width, 1)`, integers from 0 to `classes − 1`, or `ignore`.
        classes: Number of classes.
        ignore: Label of pixels that do not count.

    Returns:
        `(…, height, width, classes + 1)`, float32.

    Raises:
        ArgumentError: The labels are of another shape or type, or one is out of range.
    """
    _check_labels("labels", labels, classes, ignore)
    if labels.shape[-1] != 1:
        raise ArgumentError("labels", "must have one channel", f"shape {labels.shape}")
    valid = _valid(labels, ignore)
    return np.concatenate([(labels == np.arange(classes)) & valid, valid], axis=-1, dtype="float32")


def channel_target(masks: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Return the target of `SegmentationLoss("sigmoid")`: the channels, then 1; zeros where a pixel is ignored.

    Args:
        masks: `(…, height, width, channels)`, 0, 1 or `ignore`; one channel for foreground and background.
        ignore: Value of pixels that do not count; in one channel, it holds for all.

    Returns:
        `(…, height, width, channels + 1)`, float32.

    Raises:
        ArgumentError: The masks are of another type, or a value is out of range.
    """
    _check_labels("masks", masks, 2, ignore)
    valid = _valid(masks, ignore)
    return np.concatenate([(masks == 1) & valid, valid], axis=-1, dtype="float32")


def _valid(labels: np.ndarray, ignore: int | None) -> np.ndarray:
    valid = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    return np.logical_and.reduce(valid, axis=-1, keepdims=True)


def _check_labels(name: str, labels: np.ndarray, classes: int, ignore: int | None) -> None:
    if labels.dtype.kind not in "iub":
        raise ArgumentError(name, "must be integers", f"dtype {labels.dtype}")
    wrong = (labels < 0) | (labels >= classes)
    if ignore is not None:
        wrong &= labels != ignore
    if wrong.any():
        besides = "" if ignore is None else f", or {ignore} where ignored"
        raise ArgumentError(name, f"must be from 0 to {classes - 1}{besides}", int(labels[wrong][0]))


def halve_by_mean(target: np.ndarray) -> np.ndarray:
    """Halve height and width, rounding up as the model does, each output pixel the mean of those it covers.

    A mask of zeros and ones becomes the fraction of each class, which is what a coarser output can know; the last
    channel of `class_target` and `channel_target` becomes the share of pixels that count.

    Args:
        target: `(…, height, width, channels)`; integers are taken as float32.

    Returns:
        `(…, ⌈height/2⌉, ⌈width/2⌉, channels)`.
    """
    if target.dtype.kind != "f":
        target = target.astype("float32")
    for axis in (-3, -2):
        if target.shape[axis] % 2:  # repeating the last row makes its mean that row
            target = np.concatenate([target, np.take(target, [-1], axis)], axis)
    rows = target[..., ::2, :, :] + target[..., 1::2, :, :]
    return (rows[..., ::2, :] + rows[..., 1::2, :]) / 4


def target_pyramid(target: np.ndarray, outputs: int) -> list[np.ndarray]:
    """Return the target of every output, finest first: full size, ½, ¼, …; for images and for class fractions."""
    pyramid = [target]
    for _ in range(outputs - 1):
        pyramid.append(halve_by_mean(pyramid[-1]))
    return pyramid


def supervision_weights(outputs: int, progress: float = 0.0) -> list[float]:
    """Return the loss weight of every output, 1 : ½ : ¼ : …, with sum 1.

    Args:
        outputs: Number of outputs.
        progress: In [0, 1]: reduces the weights of all but the finest; at 1 only the finest counts.
    """
    shares = [1.0, *(0.5**level * (1 - progress) for level in range(1, outputs))]
    return [share / sum(shares) for share in shares]
