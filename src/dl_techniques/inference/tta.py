"""The eight symmetries of the square: a model's mean over them, and how far it disagrees with itself. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from dl_techniques.errors import ArgumentError

COUNTS = (1, 2, 4, 8)  # each a group, so that the mean commutes with its members
ORDER = ((0, False), (2, False), (1, False), (3, False), (0, True), (2, True), (1, True), (3, True))


def symmetric_moments(
    function: Callable[[np.ndarray], np.ndarray], image: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of a function's results over symmetries of an image, undone, and their standard deviation.

    Args:
        function: Maps `(height, width, channels)` to the same height and width.
        image: `(height, width, channels)`.
        count: 1: the image alone; 2: also rotated by 180°; 4: all right angles; 8: these and their mirror images.

    Returns:
        Mean and standard deviation, `(height, width, channels of the result)`, float32.

    Raises:
        ArgumentError: The count is another.

    Reference: Timofte et al. 2016, Seven Ways to Improve Example-Based Single Image Super Resolution, section 3.6
    (enhanced prediction).
    """
    if count not in COUNTS:
        raise ArgumentError("tta", f"must be one of {COUNTS}", count)
    if count == 1:
        result = function(image)
        return result, np.zeros_like(result)
    mean, squares = np.zeros((), "float32"), np.zeros((), "float32")
    for number, result in enumerate(_results(function, image, count), start=1):
        step = result - mean
        mean = mean + step / np.float32(number)
        squares = squares + step * (result - mean)  # Welford: small numbers are not lost beside large ones
    return mean, np.sqrt(squares / np.float32(count))


def _results(function: Callable[[np.ndarray], np.ndarray], image: np.ndarray, count: int) -> Iterator[np.ndarray]:
    for quarters, mirrored in ORDER[:count]:
        rotated = np.rot90(image, quarters)
        result = function(np.ascontiguousarray(rotated[:, ::-1] if mirrored else rotated))
        yield np.rot90(result[:, ::-1] if mirrored else result, -quarters)
