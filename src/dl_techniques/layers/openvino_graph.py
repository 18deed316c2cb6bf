"""Operations of OpenVINO that Keras composes of several, in layouts that need no copies."""

from __future__ import annotations

from typing import Any

from keras import ops
from openvino import opset13

BANDS = 8  # parts of a tensor whose squares are computed one after the other, which bounds the memory
SAME = ([0, 0], [0, 0], [1, 1], "same_upper")  # begin and end pads, dilations, automatic padding


def convolve(x, kernel, bias, strides):
    """Return the convolution of `(batch, height, width, channels)`, zeros beyond the edges.

    OpenVINO convolves with channels first. If an operation on four axes, such as a sum or the next convolution, follows
    the transposition back to channels last, OpenVINO may keep its own layout and reorder the tensor, slowly, for every
    consumer. So the bias is added before the transposition, and a `(pixels, channels)` operation follows at once.
    """
    transposed = opset13.transpose(ops.convert_to_tensor(kernel).output, _integers(3, 2, 0, 1))
    return _hold(_channels_last(opset13.convolution(_channels_first(x), transposed, [*strides], *SAME), bias))


def convolve_depthwise(x, kernel, bias):
    """Return the convolution of each channel of `(batch, height, width, channels)` with its own window.

    The next layer of a block, a norm or matrix product, reads it as `(pixels, channels)`.
    """
    height, width, channels, _ = kernel.shape
    transposed = opset13.transpose(ops.convert_to_tensor(kernel).output, _integers(2, 3, 0, 1))
    windows = opset13.reshape(transposed, _integers(channels, 1, 1, height, width), False)
    return _channels_last(opset13.group_convolution(_channels_first(x), windows, [1, 1], *SAME), bias)


def _hold(x):
    """Return the same values through a `(pixels, channels)` PReLU of slope 1: OpenVINO would remove an identity."""

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


def sum_of_squares(x, valid=None):
    """Return the sum of squares over height and width, `(batch, channels)`, of `(batch, height, width, channels)`.

    It sums over columns, then over rows: both axes at once take up to a third more time. With the mask `valid`, 1 or 0,
    `(1, height, width, 1)`, of a single image, it computes a matrix product for each of `BANDS` parts; the squares of
    all would need as much memory as the tensor.
    """
    if valid is None:
        batch, height, width, channels = ops.shape(x)
        rows = ops.reshape(_norm(ops.reshape(x, (-1, width, channels))), (batch, height, channels))
        return ops.square(_norm(rows))
    parts = zip(_bands(ops.reshape(valid, (-1, 1))), _bands(ops.reshape(x, (-1, ops.shape(x)[-1]))), strict=True)
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

    With four axes OpenVINO would transpose the tensor before the function and after it.
    """
    batch, height, width, channels = ops.shape(x)
    results = function(ops.reshape(x, (-1, channels)))
    if isinstance(results, tuple):
        return tuple(ops.reshape(result, (batch, height, width, result.shape[-1])) for result in results)
    return ops.reshape(results, (batch, height, width, channels))
