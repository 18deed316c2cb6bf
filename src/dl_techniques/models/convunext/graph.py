"""The graph of ConvUNext: stem, encoder, bottleneck, decoder, heads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
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
    """Make and connect the layers of a ConvUNext.

    Args:
        arguments: Checked constructor arguments of `ConvUNextModel`.
        policy: Keras dtype policy of all layers.

    Returns:
        The stem layer, the input tensor, and the output tensor or list of output tensors.
    """
    layers = {layer.name: layer for layer in _make_layers(arguments, policy)}
    inputs = keras.Input(arguments["input_shape"], name="image")
    outputs = connect_layers(layers, arguments, inputs)
    return layers["stem"], inputs, outputs if arguments["enable_deep_supervision"] else outputs[0]


# === Layers ===


def _make_layers(arguments: Mapping[str, Any], policy) -> Iterator[Any]:
    sizes, depth = filter_sizes(arguments), arguments["depth"]
    salts = itertools.count()
    block_count = (2 * depth + 1) * arguments["blocks_per_level"]
    drop_path_rates = iter(enumerate(np.linspace(0.0, arguments["drop_path_rate"], block_count).tolist()))

    def common() -> dict[str, Any]:
        return {
            "use_bias": arguments["use_bias"],
            "kernel_initializer": fresh_initializer(arguments["kernel_initializer"], next(salts)),
            "kernel_regularizer": arguments["kernel_regularizer"],
            "dtype": policy,
        }

    def blocks(filters: int, name: str) -> Iterator[ConvNeXtBlock]:
        for index in range(arguments["blocks_per_level"]):
            position, rate = next(drop_path_rates)
            yield ConvNeXtBlock(
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
            )

    yield ConvUNextStem(
        sizes[0],
        kernel_size=arguments["stem_kernel_size"],
        equivariant_block=arguments["equivariant_block"],
        zero_mean=arguments["zero_mean_stem"],
        name="stem",
        **common(),
    )
    if _reduces_range(arguments, policy):
        yield RangeReduction(name="range_reduction")
    for level in range(depth):
        yield from blocks(sizes[level], f"encoder_{level}")
        name = f"encoder_{level}_downsample"
        yield Downsampling2x(sizes[level + 1], arguments["downsample"], name=name, **common())
    yield from blocks(sizes[depth], "bottleneck")
    for level in reversed(range(depth)):
        yield SkipFusion(sizes[level], name=f"decoder_{level}_fusion", **common())
        yield from blocks(sizes[level], f"decoder_{level}")
    yield keras.layers.Add(dtype=policy, name="stem_skip")
    yield from _make_outputs(arguments, policy, common)


def _make_outputs(arguments: Mapping[str, Any], policy, common: Callable[[], dict[str, Any]]) -> Iterator[Any]:
    channels = arguments["output_channels"] or arguments["input_shape"][2]
    full = policy.variable_dtype  # a sigmoid or softmax of half-precision logits saturates early
    for level in range(arguments["depth"] if arguments["enable_deep_supervision"] else 1):
        if arguments["include_top"]:
            yield PointwiseConv(channels, name=head_name(level), **common())
            yield keras.layers.Activation(arguments["final_activation"], dtype=full, name=f"output_{level}")
        if _reduces_range(arguments, policy):
            yield RangeRestoration(name=f"range_restoration_{level}")
        if arguments["residual_learning"]:
            yield keras.layers.Add(dtype=full, name=f"residual_{level}")
            if level:
                yield keras.layers.AveragePooling2D(
                    2, padding="same", data_format="channels_last", dtype=full, name=f"input_{level}"
                )


def _reduces_range(arguments: Mapping[str, Any], policy) -> bool:
    return policy.compute_dtype == "float16" and not arguments["use_bias"]


# === Functional model ===


def connect_layers(
    layers: Mapping[str, Any],
    arguments: Mapping[str, Any],
    inputs,
    call_block: Callable[[ConvNeXtBlock, Any, int], Any] = lambda block, x, level: block(x),
) -> list:
    """Return the outputs of a ConvUNext, finest first.

    Args:
        layers: By name.
        arguments: Constructor arguments of `ConvUNextModel`.
        inputs: The images.
        call_block: Returns what a block makes of its input at a level, 0 the finest.
    """
    depth = arguments["depth"]

    def level_of_blocks(x, name: str, level: int):
        for index in range(arguments["blocks_per_level"]):
            x = call_block(layers[f"{name}_block_{index}"], x, level)
        return x

    x, unit = inputs, None
    if "range_reduction" in layers:
        x, unit = layers["range_reduction"](x)
    x = stem_features = layers["stem"](x)

    skips = []
    for level in range(depth):
        x = level_of_blocks(x, f"encoder_{level}", level)
        skips.append(x)
        x = layers[f"encoder_{level}_downsample"](x)
    x = level_of_blocks(x, "bottleneck", depth)

    decoded = []
    for level in reversed(range(depth)):
        x = layers[f"decoder_{level}_fusion"](x, skips[level])
        x = level_of_blocks(x, f"decoder_{level}", level)
        decoded.insert(0, x)
    decoded[0] = layers["stem_skip"]([decoded[0], stem_features])

    outputs = decoded if arguments["enable_deep_supervision"] else decoded[:1]
    if arguments["include_top"]:
        outputs = [layers[head_name(level)](x) for level, x in enumerate(outputs)]
    if unit is not None:
        outputs = [layers[f"range_restoration_{level}"](x, unit) for level, x in enumerate(outputs)]
    if arguments["residual_learning"]:
        outputs = _add_input(layers, inputs, outputs)
    if arguments["include_top"]:
        outputs = [layers[f"output_{level}"](x) for level, x in enumerate(outputs)]
    return outputs


def _add_input(layers: Mapping[str, Any], inputs, outputs: list) -> list:
    """Add the input, averaged down to each output's size, in full precision."""
    sums = []
    for level, x in enumerate(outputs):
        if level:
            inputs = layers[f"input_{level}"](inputs)
        sums.append(layers[f"residual_{level}"]([inputs, x]))
    return sums
