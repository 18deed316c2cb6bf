"""Normalization layers of the ConvNeXt block: layer norm over channels and global response normalization."""

from __future__ import annotations

import keras
from keras import ops

from dl_techniques.layers.equivariant import TINY
from dl_techniques.layers.pointwise import REGISTRY


class ChannelNormalization(keras.layers.LayerNormalization):
    """Layer norm over the channels of every pixel."""

    def call(self, inputs):
        if keras.backend.backend() != "openvino":
            return super().call(inputs)
        from dl_techniques.layers.openvino_graph import by_pixel, normalize

        return by_pixel(lambda x: normalize(x, self.epsilon) * self.gamma + self.beta, inputs)


@keras.saving.register_keras_serializable(package=REGISTRY)
class GlobalResponseNormalization(keras.layers.Layer):
    """Scale each channel by its share of the response over the image, so that channels compete.

    `G_c = √Σ_hw x_c²`, `N = G / mean_c(G)`, `y = x + gamma·(x·N) + beta`, gamma and beta starting at zero. The sums
    run in float32. Epsilon stands inside the root, so that a silent channel has a finite gradient, and is so small
    that without beta the layer is homogeneous, y(a·x) = a·y(x), to float precision.

    Args:
        use_bias: Whether the layer has the additive `beta`.
        epsilon: Added to the sum of squares under the root.

    Call arguments:
        x: `(batch, height, width, channels)`.

    Returns:
        A tensor of the input's shape.

    Reference: Woo et al. 2023, ConvNeXt V2, section 3.2, algorithm 1. Ours has epsilon under the root instead of
    beside the mean.
    """

    def __init__(self, use_bias: bool = True, epsilon: float = TINY, **kwargs) -> None:
        super().__init__(**kwargs)
        self.use_bias = use_bias
        self.epsilon = epsilon

    def build(self, input_shape) -> None:
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta") if self.use_bias else None

    def sum_of_squares(self, x, valid=None):
        """Return the sum of squares of every channel, `(batch, channels)`, over pixels where `valid` is 1 if given."""
        if keras.backend.backend() == "openvino":
            from dl_techniques.layers import openvino_graph

            return openvino_graph.sum_of_squares(x, valid)
        wide = ops.square(ops.cast(x, keras.backend.result_type(x.dtype, "float32")))
        return ops.sum(wide if valid is None else wide * ops.cast(valid, wide.dtype), axis=(1, 2))

    def channel_scale(self, squares):
        """Return the factor `1 + gamma·N` of every channel, `(batch, channels)`."""
        response = ops.sqrt(squares + self.epsilon)
        share = response / ops.mean(response, axis=-1, keepdims=True)
        return ops.cast(1.0 + ops.cast(self.gamma, share.dtype) * share, self.compute_dtype)

    def call(self, x):
        y = x * ops.expand_dims(ops.expand_dims(self.channel_scale(self.sum_of_squares(x)), 1), 1)
        return y if self.beta is None else y + self.beta

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "use_bias": self.use_bias, "epsilon": self.epsilon}
