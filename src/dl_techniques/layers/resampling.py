"""Downsampling, and upsampling with a skip connection, between the levels of a U-Net, for images of any size."""

from __future__ import annotations

import keras
from keras import ops

from dl_techniques.errors import ArgumentError
from dl_techniques.layers.convolution import Convolution
from dl_techniques.layers.custom_gradient import custom_gradient_ops
from dl_techniques.layers.pointwise import REGISTRY, PointwiseConv
from dl_techniques.layers.upsampling import upsample_bilinear_2x


@keras.saving.register_keras_serializable(package=REGISTRY)
class SkipFusion(keras.layers.Layer):
    """Upsample, crop to the skip connection, concatenate with it and adjust the channels by a 1×1 convolution.

    Computed as `upsample(K₁x) + K₂·skip + b`. That is the same function, since a 1×1 convolution commutes with an
    interpolation whose weights sum to one and acts on a concatenation as a sum, with a quarter of the products on the
    upsampled half and no concatenated tensor.

    Args:
        filters: Output channels.
        use_bias: Whether to add a bias per output channel.
        kernel_initializer: Initializer, seen with the fan-in of the concatenation.
        kernel_regularizer: Regularizer of the kernel.

    Call arguments:
        x: `(batch, ⌈height/2⌉, ⌈width/2⌉, channels)`, the coarser features.
        skip: `(batch, height, width, skip channels)`, the encoder's features.
        training: Whether gradients are needed.

    Returns:
        `(batch, height, width, filters)`.

    Reference: Ronneberger et al. 2015, U-Net, figure 1.
    """

    def __init__(
        self,
        filters: int,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, x_shape, skip_shape) -> None:
        self.kernel = self.add_weight(
            shape=(x_shape[-1] + skip_shape[-1], self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")

    def call(self, x, skip, training=None):
        batch, height, width, skip_channels = ops.shape(skip)
        # Use every size, the coarse batch too: OpenVINO turns an unused size into an output of the graph.
        coarse_batch, coarse_height, coarse_width, channels = ops.shape(x)
        coarse = ops.matmul(ops.reshape(x, (-1, channels)), self.kernel[:channels])
        coarse = ops.reshape(coarse, (coarse_batch, coarse_height, coarse_width, self.filters))
        fine = ops.matmul(ops.reshape(skip, (-1, skip_channels)), self.kernel[channels:])
        if self.bias is not None:
            fine = ops.add(fine, self.bias)
        fine = ops.reshape(fine, (batch, height, width, self.filters))
        if training and (custom := custom_gradient_ops(fine)):
            return custom.upsample_and_add(coarse, fine)
        return upsample_bilinear_2x(coarse)[:, :height, :width] + fine

    def compute_output_shape(self, x_shape, skip_shape):
        return (*skip_shape[:-1], self.filters)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


@keras.saving.register_keras_serializable(package=REGISTRY)
class Downsampling2x(keras.layers.Layer):
    """Halve height and width, rounding up, and change the channels.

    Args:
        filters: Output channels.
        method: `"max"`, max pooling and a 1×1 convolution, or `"conv"`, a 2×2 convolution of stride 2.
        use_bias: Whether to add a bias per output channel.
        kernel_initializer: Initializer of the kernel.
        kernel_regularizer: Regularizer of the kernel.

    Call arguments:
        x: `(batch, height, width, channels)`; odd sizes are padded at the far edge, not cropped.

    Returns:
        `(batch, ⌈height/2⌉, ⌈width/2⌉, filters)`.
    """

    METHODS = ("max", "conv")

    def __init__(
        self,
        filters: int,
        method: str = "max",
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if method not in self.METHODS:
            raise ArgumentError("method", f"must be one of {list(self.METHODS)}", method)
        self.filters = filters
        self.method = method
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

        shared = {
            "use_bias": use_bias,
            "kernel_initializer": self.kernel_initializer,
            "kernel_regularizer": self.kernel_regularizer,
            "dtype": self.dtype_policy,
        }
        layout = {"padding": "same", "data_format": "channels_last"}
        self.pool = None
        if method == "max":
            self.pool = keras.layers.MaxPooling2D(2, dtype=self.dtype_policy, name="pool", **layout)
            self.conv = PointwiseConv(filters, name="conv", **shared)
        else:
            self.conv = Convolution(filters, 2, strides=2, name="conv", **layout, **shared)

    def build(self, input_shape) -> None:
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(x if self.pool is None else self.pool(x))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return batch, _halved(height), _halved(width), self.filters

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "method": self.method,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def _halved(size: int | None) -> int | None:
    return None if size is None else -(-size // 2)
