"""Down- and upsampling by two for images of any size, with sizes that may be unknown when the graph is made."""

from __future__ import annotations

import keras
from keras import ops

from dl_techniques.errors import ArgumentError
from dl_techniques.layers.pointwise import REGISTRY, PointwiseConv


def upsample_bilinear_2x(x):
    """Double height and width by bilinear interpolation between pixel centres, edges repeated.

    Output pixel 2i is `¼ x[i−1] + ¾ x[i]`, pixel 2i+1 is `¾ x[i] + ¼ x[i+1]`: the same numbers as a bilinear resize
    with half-pixel centres, from slices and sums that every backend and export knows at unknown sizes.

    Args:
        x: `(batch, height, width, channels)`.

    Returns:
        `(batch, 2·height, 2·width, channels)`.
    """
    batch, height, width, channels = ops.shape(x)
    near, far = 0.75 * x, 0.25 * x
    above = ops.concatenate([far[:, :1], far[:, :-1]], axis=1)
    below = ops.concatenate([far[:, 1:], far[:, -1:]], axis=1)
    # Rows 2i and 2i+1 side by side along the width, then as rows.
    rows = ops.concatenate([near + above, near + below], axis=2)  # (batch, height, 2 width, channels)
    x = ops.reshape(rows, (batch, 2 * height, width, channels))

    near, far = 0.75 * x, 0.25 * x
    left = ops.concatenate([far[:, :, :1], far[:, :, :-1]], axis=2)
    right = ops.concatenate([far[:, :, 1:], far[:, :, -1:]], axis=2)
    # Columns 2j and 2j+1 side by side along the channels, then as columns.
    columns = ops.concatenate([near + left, near + right], axis=3)  # (batch, 2 height, width, 2 channels)
    return ops.reshape(columns, (batch, 2 * height, 2 * width, channels))


@keras.saving.register_keras_serializable(package=REGISTRY)
class BilinearUpsampling2x(keras.layers.Layer):
    """Double height and width by bilinear interpolation; see `upsample_bilinear_2x`."""

    def call(self, x):
        return upsample_bilinear_2x(x)

    def compute_output_shape(self, input_shape):
        return _doubled(input_shape)


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

    def call(self, x, skip):
        batch, height, width, skip_channels = ops.shape(skip)
        # Every size is used, the coarse batch too: OpenVINO makes an output of a size that leads nowhere.
        coarse_batch, coarse_height, coarse_width, channels = ops.shape(x)
        coarse = ops.matmul(ops.reshape(x, (-1, channels)), self.kernel[:channels])
        coarse = ops.reshape(coarse, (coarse_batch, coarse_height, coarse_width, self.filters))
        fine = ops.matmul(ops.reshape(skip, (-1, skip_channels)), self.kernel[channels:])
        if self.bias is not None:
            fine = ops.add(fine, self.bias)
        fine = ops.reshape(fine, (batch, height, width, self.filters))
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
            self.conv = keras.layers.Conv2D(filters, 2, strides=2, name="conv", **layout, **shared)

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


def _doubled(shape):
    batch, height, width, channels = shape
    return batch, height and 2 * height, width and 2 * width, channels
