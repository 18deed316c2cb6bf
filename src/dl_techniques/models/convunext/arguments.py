"""Validation of the arguments of a ConvUNext, before any weight is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, TypeGuard

import keras

from dl_techniques.errors import ArgumentError
from dl_techniques.layers.equivariant import EQUIVARIANT_BLOCKS, HOMOGENEOUS_ACTIVATIONS
from dl_techniques.layers.resampling import Downsampling2x

# Largest value of each count, far above any use: a hostile config must not exhaust memory or time.
LARGEST = {
    "depth": 12,
    "initial_filters": 2**16,
    "filter_multiplier": 16,
    "blocks_per_level": 256,
    "stem_kernel_size": 255,
    "block_kernel_size": 255,
    "output_channels": 2**16,
}
LARGEST_PARAMETERS = 2**33  # xlarge has 2**30
KERNELS_PER_BLOCK = 3
CHOICES = {
    "convnext_version": ("v1", "v2"),
    "downsample": Downsampling2x.METHODS,
    "equivariant_block": tuple(EQUIVARIANT_BLOCKS),
}
RATES = ("drop_path_rate", "dropout_rate")
FLAGS = ("use_bias", "enable_deep_supervision", "include_top", "residual_learning", "remat", "zero_mean_stem")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise `ArgumentError`, a `ValueError`, for the first argument of `ConvUNextModel` that is out of its range."""
    _check_input_shape(arguments["input_shape"])
    for name, largest in LARGEST.items():
        least = 2 if name == "depth" else 1
        value = arguments[name]
        if value is None and name == "output_channels":
            continue
        if not _is_integer(value) or int(value) < least:
            raise ArgumentError(name, f"must be an integer of at least {least}", value)
        if int(value) > largest:
            raise ArgumentError(name, f"must be at most {largest}", value)
    for name, choices in CHOICES.items():
        if arguments[name] not in choices:
            raise ArgumentError(name, f"must be one of {list(choices)}", arguments[name])
    for name in RATES:
        value = arguments[name]
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ArgumentError(name, "must be in [0, 1)", value)
    for name in FLAGS:
        if not isinstance(arguments[name], bool):
            raise ArgumentError(name, "must be True or False", arguments[name])
    if arguments["residual_learning"]:
        _check_residual_learning(arguments)
    scale = arguments["layer_scale_init_value"]
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ArgumentError("layer_scale_init_value", "must be a finite number", scale)
    if arguments["seed"] is not None and (not _is_integer(arguments["seed"]) or arguments["seed"] < 0):
        raise ArgumentError("seed", "must be None or an integer of at least 0", arguments["seed"])
    _check_final_activation(arguments["final_activation"], arguments["use_bias"])
    parameters = count_kernel_parameters(arguments)
    if parameters > LARGEST_PARAMETERS:
        raise ArgumentError(
            "initial_filters",
            f"and depth={arguments['depth']}, filter_multiplier={arguments['filter_multiplier']} make a network of "
            f"{parameters:.2e} parameters, more than the {LARGEST_PARAMETERS:.1e} that are allowed",
            arguments["initial_filters"],
            "Choose fewer filters or levels.",
        )


def filter_sizes(arguments: Mapping[str, Any]) -> list[int]:
    """Return the channels of every level, finest first, the bottleneck last."""
    return [
        int(arguments["initial_filters"]) * int(arguments["filter_multiplier"]) ** level
        for level in range(arguments["depth"] + 1)
    ]


def check_names(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `ArgumentError` for an argument that `ConvUNextModel` does not know; Keras would ignore it."""
    others = ("dtype", "name", "trainable")
    if unknown := sorted(given.keys() - {*known, *others}):
        names = ", ".join((*sorted({*known} - {*others}), *others))
        remedy = "Check the spelling, or update convunext."
        raise ArgumentError(unknown[0], f"must be one of {names}", given[unknown[0]], remedy)


def check_stored(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ArgumentError` for a config of a larger network than the weights stored with it, before it is built.

    Args:
        config: Constructor arguments of `ConvUNextModel`, checked or not, defaults included.
        stored: Shape of each weight that is stored, by name.
    """
    check_arguments(config)
    parameters, values = count_kernel_parameters(config), sum(math.prod(shape) for shape in stored.values())
    weights = KERNELS_PER_BLOCK * (2 * config["depth"] + 1) * config["blocks_per_level"]
    if parameters > values or weights > len(stored):
        rule = (
            f"with depth={config['depth']} and blocks_per_level={config['blocks_per_level']} makes a network of at "
            f"least {parameters} parameters in {weights} weights, and {values} in {len(stored)} are stored"
        )
        raise ArgumentError("initial_filters", rule, config["initial_filters"])


def count_kernel_parameters(arguments: Mapping[str, Any]) -> int:
    """Return the number of kernel parameters; biases and norms add about one percent."""
    sizes = filter_sizes(arguments)
    channels = arguments["input_shape"][2]
    blocks = [
        arguments["blocks_per_level"] * (8 * size**2 + arguments["block_kernel_size"] ** 2 * size) for size in sizes
    ]
    stem = arguments["stem_kernel_size"] ** 2 * channels * sizes[0]
    joints = sum(fine * coarse + (fine + coarse) * fine for fine, coarse in zip(sizes, sizes[1:], strict=False))
    heads = arguments["depth"] if arguments["enable_deep_supervision"] else 1
    outputs = (arguments["output_channels"] or channels) if arguments["include_top"] else 0
    return stem + 2 * sum(blocks[:-1]) + blocks[-1] + joints + outputs * sum(sizes[:heads])


def _check_input_shape(shape: Any) -> None:
    def is_size(value: Any) -> bool:
        return _is_integer(value) and 1 <= value < 2**31

    rule = "must be (height, width, channels), each at least 1, height and width optionally None"
    if not isinstance(shape, tuple) or len(shape) != 3:
        raise ArgumentError("input_shape", rule, shape)
    height, width, channels = shape
    if not is_size(channels) or channels > 2**16 or not all(size is None or is_size(size) for size in (height, width)):
        raise ArgumentError("input_shape", rule, shape)


def _check_residual_learning(arguments: Mapping[str, Any]) -> None:
    channels = arguments["input_shape"][2]
    if not arguments["include_top"] or arguments["output_channels"] not in (None, channels):
        raise ArgumentError(
            "residual_learning",
            f"needs include_top=True and output_channels={channels}, as the input has, since it adds the input",
            True,
        )


def _check_final_activation(activation: Any, use_bias: bool) -> None:
    name = getattr(keras.activations.get(activation), "__name__", repr(activation))
    if not use_bias and name not in HOMOGENEOUS_ACTIVATIONS:
        raise ArgumentError(
            "final_activation",
            f"must be one of {list(HOMOGENEOUS_ACTIVATIONS)} with use_bias=False, which promises f(a·x) = a·f(x)",
            name,
            "Choose one of these, or use_bias=True.",
        )


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)
