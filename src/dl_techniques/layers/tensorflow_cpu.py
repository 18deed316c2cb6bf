"""Operations with custom gradients: the expensive parts of a block in training with TensorFlow on a CPU.

TensorFlow computes each operation in a pass of its own over memory and saves the tensors that its gradient needs: for
an exact GELU three of the block's widest size. Here the gradient needs one, with `remat` none; elementwise operations
are compiled into one pass; the gradient of a depthwise convolution is two depthwise convolutions. The results are those
of the plain layers; docs/performance.md has the measured gains.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from dl_techniques.layers.normalization import ChannelNormalization
from dl_techniques.layers.pointwise import gelu
from dl_techniques.layers.upsampling import upsample_bilinear_2x

ROOT_HALF = math.sqrt(0.5)
NORMAL_PEAK = 1.0 / math.sqrt(2.0 * math.pi)  # density of the standard normal distribution at zero
CHUNK = 32  # pixels whose squares are summed in one loop
FAST_COLUMNS = 3  # window columns: for wider windows oneDNN computes the kernel gradient as if channels were mixed


def is_supported(x) -> bool:
    """Return whether these operations support a tensor: float32, known height and width, no GPU on this machine."""
    known = None not in x.shape[1:3]
    return known and x.dtype == tf.float32 and not tf.config.list_physical_devices("GPU")


def block_functions(block):
    """Return depthwise convolution, norm and bottleneck of a `ConvNeXtBlock`, as functions of its tensors.

    A layer norm adds the bias of the convolution in its own pass. Other norms, and a bottleneck without GELU, are the
    plain ones of the block.
    """
    layer_normed = isinstance(block.norm, ChannelNormalization)

    def convolve(x):
        y = depthwise(x, block.dwconv.kernel)
        return y if layer_normed or block.dwconv.bias is None else y + block.dwconv.bias

    def normalize(x):
        return layer_norm(x, block.dwconv.bias, block.norm.gamma, block.norm.beta, block.norm.epsilon)

    def mix(x):
        y = bottleneck(x, block.pwconv1, block.grn, block.pwconv2, block.remat)
        return y if block.layer_scale is None else block.layer_scale(y)

    if block.pwconv1.activation is not gelu:
        mix = keras.remat(block._bottleneck) if block.remat else block._bottleneck
    return convolve, normalize if layer_normed else block.norm, mix


# === Depthwise convolution ===


def depthwise(x, kernel):
    """Convolve each channel with its own window, padded with zeros.

    The gradient with respect to the input is the convolution of the output's gradient with the window rotated by 180°.
    The gradient with respect to the kernel is computed for up to `FAST_COLUMNS` columns of the window at a time.

    Args:
        x: `(batch, height, width, channels)`.
        kernel: Variable `(side, side, channels, 1)`, the side odd.

    Returns:
        A tensor of x's shape.
    """

    @tf.custom_gradient
    def function(x, kernel) -> Any:
        def gradient(dy):
            return _convolve(dy, tf.reverse(kernel, [0, 1]), "SAME"), _kernel_gradient(x, dy, kernel.shape[0])

        return _convolve(x, kernel, "SAME"), gradient

    return function(x, tf.convert_to_tensor(kernel))


def _convolve(x, kernel, padding: str):
    return tf.raw_ops.DepthwiseConv2dNative(input=x, filter=kernel, strides=[1, 1, 1, 1], padding=padding)


def _kernel_gradient(x, dy, side: int):
    """Return Σ x[y+i, x+j]·dy[y, x] over images and pixels, `(side, side, channels, 1)`."""
    # oneDNN is fast for windows of up to FAST_COLUMNS columns, so a wide window is split: a middle group of columns,
    # which needs no padded copy of x, and groups to its left and right, which do.
    reach, half = side // 2, FAST_COLUMNS // 2
    middle = (max(reach - half, 0), min(reach + half + 1, side))
    left = [(max(end - FAST_COLUMNS, 0), end) for end in range(middle[0], 0, -FAST_COLUMNS)]
    others = tuple(left + [(side - end, side - begin) for begin, end in left])
    sums = {middle: _correlate(x, dy, (side, middle[1] - middle[0]), "SAME")}
    for columns, part in zip(others, _padded_parts(x, reach, others) if others else (), strict=True):
        sums[columns] = _correlate(part, dy, (side, columns[1] - columns[0]), "VALID")
    return tf.concat([sums[columns] for columns in sorted(sums)], axis=1)


def _correlate(x, dy, window: tuple[int, int], padding: str):
    sizes = [*window, x.shape[-1], 1]
    return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x, filter_sizes=sizes, out_backprop=dy, strides=[1, 1, 1, 1], padding=padding
    )


# === Layer norm ===


def layer_norm(x, shift, gamma, beta, epsilon: float):
    """Return the layer norm of `x + shift` over the last axis; only x is saved for the gradient."""
    channels = x.shape[-1]
    tensors = [tf.zeros(channels) if shift is None else shift, gamma, beta]

    @tf.custom_gradient
    def function(x, shift, gamma, beta) -> Any:
        def gradient(dy):
            dx, weighted = _normalization_gradient(x, shift, gamma, dy, epsilon)
            return dx, _column_sums(dx), _column_sums(weighted), _column_sums(dy)

        return _normalize(x, shift, gamma, beta, epsilon), gradient

    y = function(tf.reshape(x, (-1, channels)), *map(tf.convert_to_tensor, tensors))
    return tf.reshape(y, tf.shape(x))


# === Bottleneck ===


def bottleneck(x, expand, response, project, remat: bool):
    """Return `project(response(GELU(expand(x))))`, without a layer scale.

    Args:
        x: `(batch, height, width, channels)`.
        expand: `PointwiseConv` to the wide tensor; its activation is the GELU.
        response: `GlobalResponseNormalization`, or `None` for a V1 block.
        project: `PointwiseConv` back, without activation.
        remat: Whether the wide tensor is recomputed for the gradient instead of being saved.

    Returns:
        `(batch, height, width, filters)`.
    """
    height, width, channels = x.shape[1:]
    weights = [expand.kernel, project.kernel, expand.bias, project.bias]
    if response is not None:
        weights += [response.gamma, response.beta]
    present = [index for index, weight in enumerate(weights) if weight is not None]
    tensors = [tf.convert_to_tensor(weights[index]) for index in present]

    @tf.custom_gradient
    def function(x, *tensors) -> Any:
        parts: list = [None] * len(weights)
        for index, tensor in zip(present, tensors, strict=True):
            parts[index] = tensor
        y, gradients = _bottleneck(x, response, parts, remat)

        def gradient(dy):
            dx, *others = gradients(dy)
            return dx, *(others[index] for index in present)

        return y, gradient

    y = function(tf.reshape(x, (-1, height * width, channels)), *tensors)
    return tf.reshape(y, (-1, height, width, project.filters))


def _bottleneck(x, response, parts: list, remat: bool):
    """Return the projection of `(batch, pixels, channels)` and the function of its gradients, in the order of parts."""
    kernel_1, kernel_2, bias_1, bias_2, *response_parts = parts
    gamma, beta = response_parts or (None, None)
    epsilon = 0.0 if response is None else response.epsilon
    shift_1 = tf.zeros(kernel_1.shape[1]) if bias_1 is None else bias_1  # added in the pass of the GELU

    wide = _multiply(x, kernel_1)
    saved = None if remat else wide
    active = _gelu(wide, shift_1)
    # In two sums: XLA compiles a single one over all pixels into nested windows, which take three times as long.
    squares = None if gamma is None else tf.reduce_sum(_partial_sums_of_squares(active), 1)

    def projection():
        """Return the kernel multiplied by GRN's factors, `(batch, wide channels, channels)`, without GRN unchanged."""
        if gamma is None:
            return kernel_2
        return (1.0 + gamma * _share(squares, epsilon)[0])[:, :, None] * kernel_2

    y = _multiply(active, kernel_2) if gamma is None else tf.matmul(active, projection())
    shift = bias_2
    if beta is not None:
        carried = tf.linalg.matvec(kernel_2, beta, transpose_a=True)
        shift = carried if shift is None else carried + shift
    if shift is not None:
        y = y + shift

    def gradients(dy):
        with tf.control_dependencies([dy]):  # not earlier: the recomputed tensor would occupy memory meanwhile
            wide = _multiply(x, kernel_1) if saved is None else tf.identity(saved)
            active = _gelu(wide, shift_1)
        d_bias_2 = _column_sums(dy)
        d_gamma = d_beta = None
        if gamma is None:
            d_kernel_2 = _outer(active, dy)
            d_active, d_squares = _multiply(dy, kernel_2, transpose=True), None
        else:
            by_sample = tf.matmul(active, dy, transpose_a=True)  # (batch, wide channels, channels)
            share, share_gradient = _share(squares, epsilon)
            d_scale = tf.reduce_sum(by_sample * kernel_2, -1)
            d_gamma = tf.reduce_sum(d_scale * share, 0)
            d_squares = share_gradient(d_scale * gamma)
            d_kernel_2 = tf.reduce_sum((1.0 + gamma * share)[:, :, None] * by_sample, 0)
            if beta is not None:
                d_kernel_2 += beta[:, None] * d_bias_2
                d_beta = tf.linalg.matvec(kernel_2, d_bias_2)
            d_active = tf.matmul(dy, projection(), transpose_b=True)
        if d_squares is None:
            d_wide = _gelu_gradient(wide, shift_1, d_active)
        else:
            d_wide = _both_gradients(wide, shift_1, d_active, d_squares)
        d_bias_1 = None if bias_1 is None else _column_sums(d_wide)
        dx = _multiply(d_wide, kernel_1, transpose=True)
        return dx, _outer(x, d_wide), d_kernel_2, d_bias_1, d_bias_2, d_gamma, d_beta

    return y, gradients


def _share(squares, epsilon: float):
    """Return GRN's share of each channel, `r / mean(r)` with `r = √(squares + ε)`, and the function of its gradient."""
    root = tf.sqrt(squares + epsilon)
    mean = tf.reduce_mean(root, -1, keepdims=True)
    share = root / mean

    def gradient(d_share):
        return (d_share - tf.reduce_mean(d_share * share, -1, keepdims=True)) / mean / (2.0 * root)

    return share, gradient


def _multiply(x, kernel, transpose: bool = False):
    """Return `x @ kernel` of `(batch, pixels, channels)` as one product of matrices."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.reshape(
        tf.matmul(rows, kernel, transpose_b=transpose), (-1, x.shape[1], kernel.shape[0 if transpose else 1])
    )


def _outer(x, y):
    """Return Σ x yᵀ over images and pixels, `(channels of x, channels of y)`."""
    return tf.matmul(tf.reshape(x, (-1, x.shape[-1])), tf.reshape(y, (-1, y.shape[-1])), transpose_a=True)


def _column_sums(x):
    """Return the sums over images and pixels, as a product of matrices: a third of the time of `reduce_sum`."""
    rows = tf.reshape(x, (-1, x.shape[-1]))
    return tf.matmul(tf.ones((1, tf.shape(rows)[0])), rows)[0]


# === Upsampling ===


def upsample_and_add(coarse, fine):
    """Return the coarse features upsampled by two, cropped to the fine ones and added to them.

    Args:
        coarse: `(batch, ⌈height/2⌉, ⌈width/2⌉, channels)`.
        fine: `(batch, height, width, channels)`.
    """

    @tf.custom_gradient
    def function(coarse, fine) -> Any:
        return _upsample_and_add(coarse, fine), lambda dy: (_upsampling_gradient(dy), dy)

    return function(coarse, fine)


# === Compiled passes ===


def _one_pass(function):
    return tf.function(function, jit_compile=True, autograph=False)


@_one_pass
def _padded_parts(x, reach: int, groups: tuple[tuple[int, int], ...]):
    """Return the zero-padded part of x that each group of a window's columns, `(begin, end)`, covers."""
    width = x.shape[2]
    x = tf.pad(x, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
    return [x[:, :, begin : end - 1 + width] for begin, end in groups]


@_one_pass
def _upsample_and_add(coarse, fine):
    return upsample_bilinear_2x(coarse)[:, : fine.shape[1], : fine.shape[2]] + fine


@_one_pass
def _upsampling_gradient(dy):
    """Return the gradient with respect to the coarse tensor.

    Its pixel i has weight ¾ in the upsampled pixels 2i and 2i+1, and ¼ in 2i−1 and 2i+2; where one of these is beyond
    the edge, the nearest pixel gets its weight.
    """
    for axis in (1, 2):
        count = -(-dy.shape[axis] // 2)
        cropped = [2 * count - dy.shape[axis] if each == axis else 0 for each in range(4)]
        dy = tf.pad(dy, [[0, more] for more in cropped])
        pairs = tf.reshape(dy, (-1, *dy.shape[1:axis], count, 2, *dy.shape[axis + 1 :]))
        even, odd = tf.unstack(pairs, axis=axis + 1)
        first, later = tf.split(even, [1, count - 1], axis)
        earlier, last = tf.split(odd, [count - 1, 1], axis)
        beyond = tf.concat([first, earlier], axis) + tf.concat([later, last], axis)
        dy = 0.75 * (even + odd) + 0.25 * beyond
    return dy


def _normal_distribution(x):
    return 0.5 * (1.0 + tf.math.erf(x * ROOT_HALF))


@_one_pass
def _gelu(x, shift):
    """Return the exact GELU of `x + shift`."""
    x += shift
    return x * _normal_distribution(x)


@_one_pass
def _partial_sums_of_squares(x):
    """Return the sums of squares over every `CHUNK` pixels, `(batch, chunks, channels)`."""
    pixels, channels = x.shape[1:]
    x = tf.pad(x, [[0, 0], [0, -pixels % CHUNK], [0, 0]])
    return tf.reduce_sum(tf.square(tf.reshape(x, (-1, -(-pixels // CHUNK), CHUNK, channels))), 2)


@_one_pass
def _gelu_gradient(x, shift, dy):
    x += shift
    return dy * (_normal_distribution(x) + x * NORMAL_PEAK * tf.exp(-0.5 * tf.square(x)))


@_one_pass
def _both_gradients(x, shift, dy, d_squares):
    """Return the gradient by x, given the gradients by the GELU and by its sums of squares."""
    x += shift
    below = _normal_distribution(x)
    dy += 2.0 * x * below * d_squares[:, None]
    return dy * (below + x * NORMAL_PEAK * tf.exp(-0.5 * tf.square(x)))


def _means(x):
    """Return the mean of each row, as a product of matrices: up to half of the time of `reduce_mean`."""
    return tf.matmul(x, tf.fill((x.shape[-1], 1), 1.0 / x.shape[-1]))


def _standardized(x, epsilon: float):
    """Return each row normalized to mean 0 and variance 1, and the factor it was multiplied by."""
    x -= _means(x)
    scale = tf.math.rsqrt(_means(tf.square(x)) + epsilon)
    return x * scale, scale


@_one_pass
def _normalize(x, shift, gamma, beta, epsilon: float):
    return _standardized(x + shift, epsilon)[0] * gamma + beta


@_one_pass
def _normalization_gradient(x, shift, gamma, dy, epsilon: float):
    """Return the gradient by x, and the terms of that by gamma."""
    y, scale = _standardized(x + shift, epsilon)
    weighted, dy = dy * y, dy * gamma
    across = _means(dy) + y * _means(dy * y)
    return scale * (dy - across), weighted
