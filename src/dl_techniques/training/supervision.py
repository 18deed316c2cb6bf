"""Targets and weights for the outputs of a deeply supervised model.

Reference: Lee et al. 2015, Deeply-Supervised Nets.
"""

from __future__ import annotations

import numpy as np


def halve_by_mean(target: np.ndarray) -> np.ndarray:
    """Halve height and width, rounding up, each output pixel the mean of those it covers.

    A mask of zeros and ones becomes the fraction of each class, which is what a coarser output can know.

    Args:
        target: `(batch, height, width, channels)`.

    Returns:
        `(batch, ⌈height/2⌉, ⌈width/2⌉, channels)`.
    """
    for axis in (1, 2):
        if target.shape[axis] % 2:  # repeating the last row makes its mean that row
            target = np.concatenate([target, np.take(target, [-1], axis)], axis)
    return (target[:, ::2, ::2] + target[:, 1::2, ::2] + target[:, ::2, 1::2] + target[:, 1::2, 1::2]) / 4


def target_pyramid(target: np.ndarray, outputs: int) -> list[np.ndarray]:
    """Return the target of every output, finest first: full size, ½, ¼, …"""
    pyramid = [target]
    for _ in range(outputs - 1):
        pyramid.append(halve_by_mean(pyramid[-1]))
    return pyramid


def supervision_weights(outputs: int) -> list[float]:
    """Return the loss weight of every output, 1 : ½ : ¼ : …, with sum 1."""
    total = sum(0.5**level for level in range(outputs))
    return [0.5**level / total for level in range(outputs)]
