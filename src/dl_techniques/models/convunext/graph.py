"""The graph of ConvUNext: stem, encoder, bottleneck, decoder, heads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from dl_techniques.layers.convnext import ConvNeXtBlock, ConvUNextStem
from dl_techniques.layers.equivariant import RangeReduction, RangeRestoration
from dl_techniques.layers.pointwise import PointwiseConv, fresh_initializer
from dl_techniques.layers.resampling import Downsampling2x, SkipFusion
from dl_techniques.models.convunext.arguments import filter_sizes


def head_name(level: int) -> str:
    """Return the name of the 1×1 convolution that makes the output of a decoder level; 0 is the finest."""
    return f"head_{level}"


def build_graph(arguments: Mapping[str, Any], policy):
    """Connect the layers of a ConvUNext.

    Args:
        arguments: Checked constructor arguments of `ConvUNextModel`.
        policy: Keras dtype policy of all layers.

    Returns:
        The stem layer, the input tensor, and the output tensor or list of output tensors.
    """
    sizes = filter_sizes(arguments)
    depth, use_bias = arguments["depth"], arguments["use_bias"]
    salts = itertools.count()
    block_count = (2 * depth + 1) * arguments["blocks_per_level"]
    drop_path_rates = iter(enumerate(np.linspace(0.0, arguments["drop_path_rate"], block_count).tolist()))

    # === Layers ===
    def common() -> dict[str, Any]:
        return {
            "use_bias": use_bias,
            "kernel_initializer": fresh_initializer(arguments["kernel_initializer"], next(salts)),
            "kernel_regularizer": arguments["kernel_regularizer"],
            "dtype": policy,
        }

    def level_of_blocks(x, filters: int, name: str):
        for index in range(arguments["blocks_per_level"]):
            position, rate = next(drop_path_rates)
            x = ConvNeXtBlock(
                filters,
                kernel_size=arguments["block_kernel_size"],
                version=arguments["convnext_version"],
                drop_path_rate=rate,
                dropout_rate=arguments["dropout_rate"],
                layer_scale_init_value=arguments["layer_scale_init_value"],
                equivariant_block=arguments["equivariant_block"],
                remat=arguments["remat"],
                seed=None if arguments["seed"] is None else arguments["seed"] + 2 * position,
                name=f"{name}_block_{index}",
                **common(),
            )(x)
        return x

    stem = ConvUNextStem(
        sizes[0],
        kernel_size=arguments["stem_kernel_size"],
        equivariant_block=arguments["equivariant_block"],
        name="stem",
        **common(),
    )

    # === Functional model ===
    inputs = keras.Input(arguments["input_shape"], name="image")
    x, unit = inputs, None
    if policy.compute_dtype == "float16" and not use_bias:
        x, unit = RangeReduction(name="range_reduction")(x)
    x = stem_features = stem(x)

    skips = []
    for level in range(depth):
        x = level_of_blocks(x, sizes[level], f"encoder_{level}")
        skips.append(x)
        x = Downsampling2x(sizes[level + 1], arguments["downsample"], name=f"encoder_{level}_downsample", **common())(x)
    x = level_of_blocks(x, sizes[depth], "bottleneck")

    decoded = []
    for level in reversed(range(depth)):
        x = SkipFusion(sizes[level], name=f"decoder_{level}_fusion", **common())(x, skips[level])
        x = level_of_blocks(x, sizes[level], f"decoder_{level}")
        decoded.insert(0, x)
    decoded[0] = keras.layers.Add(dtype=policy, name="stem_skip")([decoded[0], stem_features])

    outputs = decoded if arguments["enable_deep_supervision"] else decoded[:1]
    if arguments["include_top"]:
        channels = arguments["output_channels"] or arguments["input_shape"][2]
        outputs = [PointwiseConv(channels, name=head_name(i), **common())(x) for i, x in enumerate(outputs)]
    if unit is not None:
        outputs = [RangeRestoration(name=f"range_restoration_{i}")(x, unit) for i, x in enumerate(outputs)]
    if arguments["residual_learning"]:
        outputs = _add_input(inputs, outputs, policy.variable_dtype)
    if arguments["include_top"]:
        # In full precision: a sigmoid or softmax of half-precision logits saturates early.
        activation, dtype = arguments["final_activation"], policy.variable_dtype
        outputs = [
            keras.layers.Activation(activation, dtype=dtype, name=f"output_{i}")(x) for i, x in enumerate(outputs)
        ]
    return stem, inputs, outputs if arguments["enable_deep_supervision"] else outputs[0]


def _add_input(inputs, outputs: list, dtype: str) -> list:
    """Add the input, averaged down to each output's size, in full precision."""
    sums = []
    for level, x in enumerate(outputs):
        if level:
            name = f"input_{level}"
            inputs = keras.layers.AveragePooling2D(
                2, padding="same", data_format="channels_last", dtype=dtype, name=name
            )(inputs)
        sums.append(keras.layers.Add(dtype=dtype, name=f"residual_{level}")([inputs, x]))
    return sums
