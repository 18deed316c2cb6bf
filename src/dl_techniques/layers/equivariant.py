"""Layers without additive parameters, with which f(a·x) = a·f(x) holds when `use_bias=False`."""

from __future__ import annotations

import keras
from keras import ops

from dl_techniques.layers.convolution import Convolution
from dl_techniques.layers.pointwise import REGISTRY

# Added to a mean of squares, in float32, only so that the root of zero has a gradient. Small enough to vanish
# beside the square of any intensity that a float32 image holds.
TINY = 1e-24

# Block designs of `use_bias=False`, each exactly homogeneous: norm in the block, activation that fits it.
EQUIVARIANT_BLOCKS = {
    "scale_layernorm": "layer norm that passes on its scale, GELU",
    "no_norm": "no norm, ReLU",
    "batchnorm": "variance-only batch norm, ReLU",
}

# Activations with g(a·x) = a·g(x) for a > 0.
HOMOGENEOUS_ACTIVATIONS = ("linear", "relu", "leaky_relu")


@keras.saving.register_keras_serializable(package=REGISTRY)
class ScaleCarryingLayerNormalization(keras.layers.Layer):
    """Normalize each pixel over its channels and return the scale it was divided by.

    `s = rms(u − mean(u))`, `n = gamma · (u − mean(u)) / s`, both per pixel. `n` does not change when the input is
    scaled and `s` scales with it, so `s · g(n)` is homogeneous of degree 1 for any function `g`.

    Args:
        epsilon: Added to the mean of squares under the root.

    Call arguments:
        x: `(batch, height, width, channels)`.

    Returns:
        `n` of the input's shape, and `s`, `(batch, height, width, 1)`, in the input's unit.

    Reference: Ba et al. 2016, Layer Normalization, eq. 3–4, without beta; s is passed on. Compare Herbreteau et
    al. 2023, Normalization-Equivariant Neural Networks.
    """

    def __init__(self, epsilon: float = TINY, **kwargs) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape) -> None:
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, x):
        if keras.backend.backend() == "openvino":
            from dl_techniques.layers import openvino_graph

            return openvino_graph.by_pixel(self._normalize, x)
        return self._normalize(x)

    def _normalize(self, x):
        wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        axes = (-1,)  # a tuple: with it OpenVINO recognizes its own normalization, and it fails on a bare number
        centered = wide - ops.mean(wide, axis=axes, keepdims=True)
        scale = ops.sqrt(ops.mean(ops.square(centered), axis=axes, keepdims=True) + self.epsilon)
        normalized = ops.cast(centered / scale, self.compute_dtype)
        return normalized * self.gamma, ops.cast(scale, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape), (*input_shape[:-1], 1)

    def get_config(self) -> dict:
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package=REGISTRY)
class VarianceBatchNormalization(keras.layers.Layer):
    """Divide each channel by its standard deviation over the batch; no mean is subtracted, nothing is added.

    At inference the running variance is a constant, so the layer is linear. In training it normalizes by the batch,
    so a model with it is homogeneous at inference only.

    Args:
        momentum: Weight of the past in the running variance.
        epsilon: Added to the variance under the root.

    Call arguments:
        x: `(batch, height, width, channels)`.
        training: Whether to use, and learn from, the variance of this batch.

    Returns:
        A tensor of the input's shape.

    Reference: Mohan et al. 2020, Robust and Interpretable Blind Image Denoising via Bias-Free CNNs, section 3.
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-6, **kwargs) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.moving_variance = self.add_weight(
            shape=shape, initializer="ones", trainable=False, autocast=False, name="moving_variance"
        )

    def call(self, x, training=None):
        variance = self.moving_variance
        if training:
            variance = ops.var(ops.cast(x, variance.dtype), axis=(0, 1, 2))
            if self.trainable:
                past = self.moving_variance * self.momentum
                self.moving_variance.assign(past + ops.stop_gradient(variance) * (1.0 - self.momentum))
        scale = ops.cast(ops.rsqrt(variance + self.epsilon), self.compute_dtype) * self.gamma
        if keras.backend.backend() == "openvino":
            from dl_techniques.layers.openvino_graph import by_pixel

            return by_pixel(lambda x: x * scale, x)
        return x * scale

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package=REGISTRY)
class ZeroMeanConv2D(Convolution):
    """Convolve with kernels whose mean over the window is subtracted, for each input channel.

    Away from the image's borders, where zeros are padded, the output does not change when a constant is added to a
    channel. A residual network without additive parameters that starts with this layer is normalization-equivariant
    there, `f(a·x + b) = a·f(x) + b`: the brightness does not help it to separate noise from texture.

    Reference: Herbreteau et al. 2023, Normalization-Equivariant Neural Networks, section 4: affine convolutions keep
    constants; ours remove them, and the sum with the input keeps them.
    """

    def effective_kernel(self, kernel):
        return kernel - ops.mean(kernel, axis=(0, 1), keepdims=True)


@keras.saving.register_keras_serializable(package=REGISTRY)
class RangeReduction(keras.layers.Layer):
    """Divide each sample by the largest power of two below its maximum magnitude and return that unit.

    Float16 overflows at 65,504. Division by a power of two is exact and a homogeneous network works in any unit.

    Call arguments:
        x: `(batch, height, width, channels)`.

    Returns:
        The scaled samples, magnitudes below 2, and their units, `(batch, 1, 1, 1)`, both in float32.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, x):
        largest = ops.max(ops.abs(x), axis=(1, 2, 3), keepdims=True)
        exponent = ops.floor(ops.log2(ops.where(largest > 0, largest, ops.ones_like(largest))))
        unit = ops.power(ops.full_like(exponent, 2.0), exponent)
        return x / unit, unit

    def compute_output_shape(self, input_shape):
        return tuple(input_shape), (input_shape[0], 1, 1, 1)


@keras.saving.register_keras_serializable(package=REGISTRY)
class RangeRestoration(keras.layers.Layer):
    """Multiply by the unit that `RangeReduction` divided by, in float32: `call(x, unit)`."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, x, unit):
        return x * unit

    def compute_output_shape(self, x_shape, unit_shape):
        return tuple(x_shape)
