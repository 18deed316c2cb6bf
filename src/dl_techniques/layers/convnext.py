"""The ConvNeXt block, V1 and V2, its layer scale, and the stem."""

from __future__ import annotations

import random
from typing import Any

import keras
from keras import ops

from dl_techniques.errors import ArgumentError
from dl_techniques.layers.convolution import Convolution, DepthwiseConvolution
from dl_techniques.layers.custom_gradient import custom_gradient_ops
from dl_techniques.layers.equivariant import (
    EQUIVARIANT_BLOCKS,
    ScaleCarryingLayerNormalization,
    VarianceBatchNormalization,
    ZeroMeanConv2D,
)
from dl_techniques.layers.normalization import ChannelNormalization, GlobalResponseNormalization
from dl_techniques.layers.pointwise import REGISTRY, PointwiseConv, fresh_initializer, gelu


@keras.saving.register_keras_serializable(package=REGISTRY)
class LayerScale(keras.layers.Layer):
    """Multiply each channel by a learned `gamma` that starts small, so that a block starts near the identity.

    Args:
        initial_value: Starting value of gamma.

    Call arguments:
        x: `(..., channels)`.

    Returns:
        A tensor of the input's shape.

    Reference: Touvron et al. 2021, Going deeper with Image Transformers, eq. 4.
    """

    def __init__(self, initial_value: float = 1e-6, **kwargs) -> None:
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape) -> None:
        constant = keras.initializers.Constant(self.initial_value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=constant, name="gamma")

    def call(self, x):
        return x * self.gamma

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "initial_value": self.initial_value}


def make_norm(use_bias: bool, equivariant_block: str, dtype) -> Any:
    """Return the norm of a block or stem: layer norm, or that of its bias-free design; `None` if that has none."""
    if use_bias:
        return ChannelNormalization(epsilon=1e-6, dtype=dtype, name="norm")
    if equivariant_block not in EQUIVARIANT_BLOCKS:
        raise ArgumentError("equivariant_block", f"must be one of {sorted(EQUIVARIANT_BLOCKS)}", equivariant_block)
    if equivariant_block == "no_norm":
        return None
    layer = {"scale_layernorm": ScaleCarryingLayerNormalization, "batchnorm": VarianceBatchNormalization}
    return layer[equivariant_block](dtype=dtype, name="norm")


def custom_gradient_functions(block: ConvNeXtBlock, x):
    """Return depthwise convolution, norm and bottleneck with custom gradients, `None` where they are not supported."""
    custom = custom_gradient_ops(x) if block.kernel_size % 2 else None
    return custom and custom.block_functions(block)


@keras.saving.register_keras_serializable(package=REGISTRY)
class ConvNeXtBlock(keras.layers.Layer):
    """Add a depthwise convolution and an inverted bottleneck to their input: `y = x + drop_path(branch(x))`.

    The branch is `dwconv → norm → pwconv1 → GELU → [GRN] → pwconv2 → [layer scale]`, GRN in V2, layer scale in V1.
    With `use_bias=False` no parameter is additive and the block is homogeneous, `y(a·x) = a·y(x)`, pixel by pixel;
    `equivariant_block` says how: `"scale_layernorm"` multiplies the branch by the scale that its norm divided by,
    `"no_norm"` and `"batchnorm"` (variance only, linear at inference) use ReLU instead of GELU.

    Args:
        filters: Channels of input and output.
        kernel_size: Width of the depthwise kernel, in pixels.
        version: `"v1"` (layer scale) or `"v2"` (global response normalization).
        expansion: Width of the bottleneck's middle, in multiples of `filters`.
        drop_path_rate: Probability, in [0, 1), that a sample skips the branch in training.
        dropout_rate: Probability, in [0, 1), that a value of the branch is zeroed in training.
        layer_scale_init_value: Starting value of V1's layer scale.
        use_bias: Whether the block has additive parameters.
        equivariant_block: Design of the bias-free block, one of `EQUIVARIANT_BLOCKS`; unused with `use_bias=True`.
        remat: Recompute the bottleneck in the backward pass instead of keeping it in memory.
        kernel_initializer: Initializer of the three kernels, copied afresh for each.
        kernel_regularizer: Regularizer of the three kernels.
        seed: Seed of the dropouts; default: drawn from Python's generator.

    Call arguments:
        x: `(batch, height, width, filters)`.
        training: Whether drop path and dropout act.

    Returns:
        A tensor of the input's shape.

    Reference: Liu et al. 2022, A ConvNet for the 2020s, figure 4; Woo et al. 2023, ConvNeXt V2, figure 5; Huang et
    al. 2016, Deep Networks with Stochastic Depth, eq. 2.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 7,
        version: str = "v2",
        expansion: int = 4,
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        use_bias: bool = True,
        equivariant_block: str = "scale_layernorm",
        remat: bool = False,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        seed: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if version not in ("v1", "v2"):
            raise ArgumentError("version", "must be 'v1' or 'v2'", version)
        self.filters = filters
        self.kernel_size = kernel_size
        self.version = version
        self.expansion = expansion
        self.drop_path_rate = drop_path_rate
        self.dropout_rate = dropout_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.use_bias = use_bias
        self.equivariant_block = equivariant_block
        self.remat = remat
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.seed = seed

        self.carries_scale = not use_bias and equivariant_block == "scale_layernorm"
        self.dwconv = DepthwiseConvolution(
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=use_bias,
            depthwise_initializer=fresh_initializer(self.kernel_initializer, 0),
            depthwise_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="dwconv",
        )
        self.norm = make_norm(use_bias, equivariant_block, self.dtype_policy)
        smooth = use_bias or self.carries_scale
        self.pwconv1 = self._pointwise(expansion * filters, gelu if smooth else "relu", 1, "pwconv1")
        self.grn: Any = None
        if version == "v2":
            self.grn = GlobalResponseNormalization(use_bias, dtype=self.dtype_policy, name="grn")
        self.pwconv2 = self._pointwise(filters, None, 2, "pwconv2")
        self.layer_scale: Any = None
        if version == "v1":
            self.layer_scale = LayerScale(layer_scale_init_value, dtype=self.dtype_policy, name="layer_scale")
        self.dropout = self._dropout(dropout_rate, None, 0, "dropout")
        self.drop_path = self._dropout(drop_path_rate, (None, 1, 1, 1), 1, "drop_path")

    def _pointwise(self, filters: int, activation, salt: int, name: str) -> PointwiseConv:
        return PointwiseConv(
            filters,
            use_bias=self.use_bias,
            activation=activation,
            kernel_initializer=fresh_initializer(self.kernel_initializer, salt),
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name=name,
        )

    def _dropout(self, rate: float, noise_shape, salt: int, name: str) -> keras.layers.Dropout | None:
        if not rate:
            return None
        seed = random.randrange(2**31) if self.seed is None else self.seed + salt  # noqa: S311
        return keras.layers.Dropout(rate, noise_shape=noise_shape, seed=seed, dtype=self.dtype_policy, name=name)

    def build(self, input_shape) -> None:
        if input_shape[-1] != self.filters:
            raise ArgumentError("filters", f"must equal the input's {input_shape[-1]} channels", self.filters)
        wide_shape = (*input_shape[:-1], self.expansion * self.filters)
        for layer, shape in (
            (self.dwconv, input_shape),
            (self.norm, input_shape),
            (self.pwconv1, input_shape),
            (self.grn, wide_shape),
            (self.pwconv2, wide_shape),
            (self.layer_scale, input_shape),
            (self.dropout, input_shape),
            (self.drop_path, input_shape),
        ):
            if layer is not None:
                layer.build(shape)

    def call(self, x, training=None):
        depthwise, norm, bottleneck = self.dwconv, self.norm, self._bottleneck
        if training and (functions := custom_gradient_functions(self, x)):
            depthwise, norm, bottleneck = functions
        elif training and self.remat:
            bottleneck = keras.remat(bottleneck)
        return x + self.branch(x, bottleneck, depthwise, norm)

    def branch(self, x, bottleneck, depthwise=None, norm=None):
        """Return the residual branch; convolution and norm may be replaced (default: those of the block)."""
        norm = norm or self.norm
        y, scale = (depthwise or self.dwconv)(x), None
        if self.carries_scale:
            y, scale = norm(y)
        elif norm is not None:
            y = norm(y)
        y = bottleneck(y)
        if scale is not None:
            y = y * scale
        if self.dropout is not None:
            y = self.dropout(y)
        return y if self.drop_path is None else self.drop_path(y)

    def _bottleneck(self, x):
        x = self.pwconv1(x)  # (batch, height, width, expansion * filters)
        if self.grn is None:
            return self.layer_scale(self.pwconv2(x))
        return self.reduce(x, self.grn.sum_of_squares(x))

    def reduce(self, x, squares):
        """Return `pwconv2(grn(x))` of a V2 block, given the sums of squares that GRN normalizes by."""
        return self.pwconv2(x, channel_scale=self.grn.channel_scale(squares), channel_shift=self.grn.beta)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "version": self.version,
            "expansion": self.expansion,
            "drop_path_rate": self.drop_path_rate,
            "dropout_rate": self.dropout_rate,
            "layer_scale_init_value": self.layer_scale_init_value,
            "use_bias": self.use_bias,
            "equivariant_block": self.equivariant_block,
            "remat": self.remat,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package=REGISTRY)
class ConvUNextStem(keras.layers.Layer):
    """Turn pixels into features: a wide convolution and a layer norm over channels.

    With `use_bias=False` the norm is the one of `equivariant_block`, its scale multiplied back at once, so that the
    stem is homogeneous and the features keep the intensity, which layer norm removes. Under a float16 policy the stem
    computes in float32 and casts its output: intensities may exceed 65,504.

    Args:
        filters: Output channels.
        kernel_size: Width of the kernel, in pixels.
        use_bias: Whether the stem has additive parameters.
        kernel_initializer: Initializer of the kernel.
        kernel_regularizer: Regularizer of the kernel.
        equivariant_block: Bias-free design, one of `EQUIVARIANT_BLOCKS`; unused with `use_bias=True`.
        zero_mean: Whether the kernels have a mean of zero over their window; see `ZeroMeanConv2D`.

    Call arguments:
        x: `(batch, height, width, channels)`, intensities in any unit.
        training: Whether gradients are needed.

    Returns:
        `(batch, height, width, filters)`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 7,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        equivariant_block: str = "scale_layernorm",
        zero_mean: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**{**kwargs, "autocast": False})
        self.filters = filters
        self.kernel_size = kernel_size
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.equivariant_block = equivariant_block
        self.zero_mean = zero_mean

        inner_dtype = "float32" if self.compute_dtype == "float16" else self.dtype_policy
        self.conv = (ZeroMeanConv2D if zero_mean else Convolution)(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=fresh_initializer(self.kernel_initializer, 0),
            kernel_regularizer=self.kernel_regularizer,
            dtype=inner_dtype,
            name="conv",
        )
        self.norm = make_norm(use_bias, equivariant_block, inner_dtype)

    def build(self, input_shape) -> None:
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))

    def call(self, x, training=None):
        x = self.conv(x)
        if isinstance(self.norm, ScaleCarryingLayerNormalization):
            x, scale = self.norm(x)
            x = x * scale
        elif training and isinstance(self.norm, ChannelNormalization) and (custom := custom_gradient_ops(x)):
            x = custom.layer_norm(x, None, self.norm.gamma, self.norm.beta, self.norm.epsilon)
        elif self.norm is not None:
            x = self.norm(x)
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "equivariant_block": self.equivariant_block,
            "zero_mean": self.zero_mean,
        }
