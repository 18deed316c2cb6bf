"""1×1 convolution as one matrix product, the exact GELU, and initializers that differ between layers."""

from __future__ import annotations

import math

import keras
from keras import ops

REGISTRY = "convunext"


@keras.saving.register_keras_serializable(package=REGISTRY)
def gelu(x):
    """Return the exact GELU, ½·x·(1 + erf(x/√2)), of a tensor of any shape.

    Written out because Keras' own exports an `Erfc` that no ONNX runtime knows, and because TensorFlow fuses this
    form with the matrix product before it.

    Reference: Hendrycks & Gimpel 2016, Gaussian Error Linear Units.
    """
    if keras.backend.backend() in ("openvino", "torch"):
        return ops.gelu(x, approximate=False)  # one operation; written out it is five with a tensor each
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def fresh_initializer(initializer, salt: int):
    """Return a copy of an initializer that draws other values than the original.

    A Keras initializer object returns the same values at every call, so layers that share one start equal.

    Args:
        initializer: Name, config or `keras.initializers.Initializer`.
        salt: Index of the copy; a seeded initializer gets a seed derived from it.
    """
    initializer = keras.initializers.get(initializer)
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        config = {**config, "seed": (config["seed"] * 1_000_003 + salt + 1) % 2**31}
    return type(initializer).from_config(config)


@keras.saving.register_keras_serializable(package=REGISTRY)
class PointwiseConv(keras.layers.Layer):
    """Mix channels at every pixel: a 1×1 convolution computed as one matrix product.

    With `channel_scale` s and `channel_shift` t the input is first taken as `x·s + t`; both are folded into the small
    side, `(x·s + t)W + b = x(diag(s)W) + (tW + b)`, so no pass over the wide input is spent on them.

    Args:
        filters: Output channels.
        use_bias: Whether to add a bias per output channel.
        activation: Name of a Keras activation, or a function.
        kernel_initializer: Initializer of the `(channels, filters)` kernel.
        kernel_regularizer: Regularizer of the kernel.

    Call arguments:
        x: `(batch, height, width, channels)`.
        channel_scale: `None` or `(batch, channels)`.
        channel_shift: `None` or `(channels,)`.

    Returns:
        `(batch, height, width, filters)`.
    """

    def __init__(
        self,
        filters: int,
        use_bias: bool = True,
        activation=None,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.use_bias = use_bias
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape) -> None:
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x, channel_scale=None, channel_shift=None):
        batch, height, width, channels = ops.shape(x)
        if channel_scale is None:
            y = ops.matmul(ops.reshape(x, (-1, channels)), self.kernel)
        else:
            kernel = ops.expand_dims(channel_scale, 2) * self.kernel  # (batch, channels, filters)
            y = ops.matmul(ops.reshape(x, (batch, height * width, channels)), kernel)
        bias = self.bias
        if channel_shift is not None:
            shift = ops.matmul(ops.expand_dims(channel_shift, 0), self.kernel)[0]  # (filters,)
            bias = shift if bias is None else ops.add(bias, shift)
        if bias is not None:
            y = ops.add(y, bias)
        return ops.reshape(self.activation(y), (batch, height, width, self.filters))

    def compute_output_shape(self, x_shape, channel_scale_shape=None, channel_shift_shape=None):
        return (*x_shape[:-1], self.filters)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "use_bias": self.use_bias,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
