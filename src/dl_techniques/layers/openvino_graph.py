"""What OpenVINO has whole and Keras writes for it as several operations, in shapes that it need not copy."""

from __future__ import annotations

from typing import Any

from keras import ops
from openvino import opset13


def normalize(x, epsilon: float):
    """Return `(x − mean) / √(variance + epsilon)` over the last axis, of `(pixels, channels)`."""
    node: Any = opset13.mvn(x.output, opset13.constant([-1], dtype="int32"), True, epsilon, "inside_sqrt")
    return ops.convert_to_tensor(node.output(0))


def energy(x, kept=None):
    """Return the sum of squares over height and width, `(batch, channels)`, of `(batch, height, width, channels)`.

    Row by row, then over the rows: both axes at once take up to a third more time. Where only some pixels of an image
    are `kept`, 1 among zeros, `(1, height, width, 1)`, it is a matrix product: a masked copy of the tensor takes half
    as much memory again. Of several images it would be their sum.
    """
    if kept is None:
        batch, height, width, channels = ops.shape(x)
        rows = ops.reshape(_norm(ops.reshape(x, (-1, width, channels))), (batch, height, channels))
        return ops.square(_norm(rows))
    return ops.matmul(ops.reshape(kept, (1, -1)), ops.square(ops.reshape(x, (-1, ops.shape(x)[-1]))))


def _norm(x):
    """Return the root of the sum of squares over axis 1 of `(..., ..., channels)`."""
    node: Any = opset13.reduce_l2(x.output, opset13.constant([1], dtype="int32"), False)
    return ops.convert_to_tensor(node.output(0))


def by_pixel(function, x):
    """Apply a function of `(pixels, channels)` to every pixel of `(batch, height, width, channels)`.

    With four axes OpenVINO would turn them around for the function and back after it.
    """
    batch, height, width, channels = ops.shape(x)
    results = function(ops.reshape(x, (-1, channels)))
    if isinstance(results, tuple):
        return tuple(ops.reshape(result, (batch, height, width, result.shape[-1])) for result in results)
    return ops.reshape(results, (batch, height, width, channels))
