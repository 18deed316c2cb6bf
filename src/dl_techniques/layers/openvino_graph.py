"""What OpenVINO has whole and Keras writes for it as several operations, in shapes that it need not copy."""

from __future__ import annotations

from typing import Any

from keras import ops
from openvino import opset13

BANDS = 8  # of a tensor whose squares are made, added up and given up in parts
SAME = ([0, 0], [0, 0], [1, 1], "same_upper")  # pads at both ends, dilations, and what the pads are taken from


def convolve(x, kernel, bias, strides):
    """Return the convolution of `(batch, height, width, channels)`, zeros beyond the edges.

    OpenVINO convolves with channels first. Where a tensor that was turned back is read as four axes, by a sum or by the
    next convolution, it may keep it in an order of its own, and turn it, slowly, for all that follows. So the bias is
    added before, and the result is read pixel by pixel at once.
    """
    turned = opset13.transpose(ops.convert_to_tensor(kernel).output, _integers(3, 2, 0, 1))
    return _hold(_channels_last(opset13.convolution(_channels_first(x), turned, [*strides], *SAME), bias))


def convolve_depthwise(x, kernel, bias):
    """Return the convolution of each channel of `(batch, height, width, channels)` with its own window.

    What comes after it in a block, norm or product of matrices, reads it pixel by pixel.
    """
    height, width, channels, _ = kernel.shape
    turned = opset13.transpose(ops.convert_to_tensor(kernel).output, _integers(2, 3, 0, 1))
    windows = opset13.reshape(turned, _integers(channels, 1, 1, height, width), False)
    return _channels_last(opset13.group_convolution(_channels_first(x), windows, [1, 1], *SAME), bias)


def _hold(x):
    """Return the same values, read pixel by pixel by a PReLU of slope 1: what does nothing is not left in a graph."""

    def same(pixels):
        node: Any = opset13.prelu(pixels.output, opset13.constant([1.0], dtype="float32"))
        return ops.convert_to_tensor(node.output(0))

    return by_pixel(same, x)


def _channels_first(x):
    return opset13.transpose(x.output, _integers(0, 3, 1, 2))


def _channels_last(y: Any, bias):
    if bias is not None:
        y = opset13.add(y, opset13.reshape(ops.convert_to_tensor(bias).output, _integers(1, -1, 1, 1), False))
    node: Any = opset13.transpose(y, _integers(0, 2, 3, 1))
    return ops.convert_to_tensor(node.output(0))


def _integers(*values: int):
    return opset13.constant(list(values), dtype="int64")


def normalize(x, epsilon: float):
    """Return `(x − mean) / √(variance + epsilon)` over the last axis, of `(pixels, channels)`."""
    node: Any = opset13.mvn(x.output, opset13.constant([-1], dtype="int32"), True, epsilon, "inside_sqrt")
    return ops.convert_to_tensor(node.output(0))


def energy(x, kept=None):
    """Return the sum of squares over height and width, `(batch, channels)`, of `(batch, height, width, channels)`.

    Row by row, then over the rows: both axes at once take up to a third more time. Where only some pixels of an image
    are `kept`, 1 among zeros, `(1, height, width, 1)`, it is a matrix product for each of `BANDS` parts, or the squares
    would take as much memory again as the tensor. Of several images it would be their sum.
    """
    if kept is None:
        batch, height, width, channels = ops.shape(x)
        rows = ops.reshape(_norm(ops.reshape(x, (-1, width, channels))), (batch, height, channels))
        return ops.square(_norm(rows))
    parts = zip(_bands(ops.reshape(kept, (-1, 1))), _bands(ops.reshape(x, (-1, ops.shape(x)[-1]))), strict=True)
    return sum(ops.matmul(ops.reshape(part, (1, -1)), ops.square(pixels)) for part, pixels in parts)


def _bands(x):
    """Return `(pixels, channels)` in `BANDS` parts, one after the other."""
    pixels = opset13.gather(opset13.shape_of(x.output), _integers(0), _integers(0))
    each = opset13.divide(pixels, _integers(BANDS))
    lengths = opset13.concat([*[each] * (BANDS - 1), _integers(-1)], 0)
    node: Any = opset13.variadic_split(x.output, opset13.constant(0, dtype="int64"), lengths)
    return [ops.convert_to_tensor(node.output(part)) for part in range(BANDS)]


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
