"""ConvUNext: a U-Net of ConvNeXt blocks.

Reference: Ronneberger et al. 2015 (U-Net), Liu et al. 2022 (ConvNeXt), Woo et al. 2023 (ConvNeXt V2), Lee et al. 2015
(deep supervision), Mohan et al. 2020 (bias-free denoising).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from dl_techniques.card import ModelCard
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.layers.convnext import ConvUNextStem
from dl_techniques.layers.pointwise import REGISTRY
from dl_techniques.models.convunext.arguments import check_arguments, check_names, check_stored, filter_sizes
from dl_techniques.models.convunext.graph import build_graph, head_name
from dl_techniques.models.convunext.presets import CONFIG, preset_folder, read_preset, save_preset
from dl_techniques.models.convunext.variants import MODEL_VARIANTS
from dl_techniques.models.convunext.weights import assign_weights, check_weights_file, transfer_weights

__all__ = [
    "MODEL_VARIANTS",
    "ConvUNextModel",
    "ConvUNextStem",
    "create_convunext_variant",
    "create_inference_model_from_training_model",
]


@keras.saving.register_keras_serializable(package=REGISTRY)
class ConvUNextModel(keras.Model):
    """U-Net of ConvNeXt V1 or V2 blocks for segmentation, denoising and restoration.

    The output has the height and width of the input, which may be any from one pixel on. With `use_bias=False` the
    model has no additive parameter and is exactly scale-equivariant at inference, `f(a·x) = a·f(x)` for any a > 0:
    intensities may be in any unit.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None` for any size.
        depth: Number of times the image is halved, at least 2.
        initial_filters: Channels of the finest level.
        filter_multiplier: Factor from the channels of one level to those of the next.
        blocks_per_level: ConvNeXt blocks in each level of the encoder, the bottleneck and the decoder.
        convnext_version: `"v1"` (layer scale) or `"v2"` (global response normalization).
        stem_kernel_size: Width of the stem's kernel, in pixels.
        block_kernel_size: Width of the blocks' depthwise kernels, in pixels.
        drop_path_rate: Probability, in [0, 1), that a sample skips the last block in training; it grows linearly
            from 0 at the first block.
        final_activation: Activation of every output: a Keras name or a function. With `use_bias=False` one of
            `"linear"`, `"relu"`, `"leaky_relu"`.
        use_bias: Whether layers have additive parameters. `False` makes the model scale-equivariant.
        kernel_initializer: Initializer of every kernel, copied afresh for each.
        kernel_regularizer: Regularizer of every kernel.
        enable_deep_supervision: Return `depth` outputs, finest first: full size, ½, ¼, …
        output_channels: Channels of the outputs; default: those of the input.
        include_top: Whether to end in the outputs; otherwise the decoder's features are returned.
        downsample: `"max"` (max pooling and a 1×1 convolution) or `"conv"` (a 2×2 convolution of stride 2).
        dropout_rate: Probability, in [0, 1), that a value of a block's branch is zeroed in training.
        equivariant_block: Design of the blocks with `use_bias=False`: `"scale_layernorm"`, `"no_norm"` or
            `"batchnorm"`; see `ConvNeXtBlock`.
        layer_scale_init_value: Starting value of V1's layer scale.
        residual_learning: Add the input to the output, averaged down for the coarser outputs of deep supervision: the
            network learns the difference, as denoisers do (Zhang et al. 2017, section III-A). Needs as many output
            channels as the input has.
        zero_mean_stem: Let the stem see differences of intensities only. With `residual_learning` and without bias the
            model is then shift-equivariant, too, `f(a·x + b) = a·f(x) + b` away from the borders, and denoises at
            levels far outside those it was trained on (Herbreteau et al. 2023).
        remat: Recompute the wide half of each block in the backward pass: less memory, more time in training.
        seed: Seed of drop path and dropout; default: drawn from Python's generator.
        **kwargs: `name`, `trainable`, `dtype` (a policy such as `"mixed_bfloat16"`).

    Call arguments:
        inputs: `(batch, height, width, channels)`.
        training: Whether drop path and dropout act.

    Returns:
        `(batch, height, width, output_channels)`, or with deep supervision a list of `depth` tensors, each half as
        large as the one before, rounded up. Without top the last axis has the level's filters. Under mixed precision
        outputs are float32.

    Raises:
        ValueError: An argument is out of its range; the message names it, its value and what is allowed.

    Example:
        >>> model = ConvUNextModel(input_shape=(None, None, 1), depth=3, initial_filters=16, use_bias=False)
        >>> model(image).shape
    """

    MODEL_VARIANTS = MODEL_VARIANTS

    def __init__(
        self,
        input_shape: tuple[int | None, int | None, int] = (None, None, 3),
        depth: int = 4,
        initial_filters: int = 64,
        filter_multiplier: int = 2,
        blocks_per_level: int = 3,
        convnext_version: str = "v2",
        stem_kernel_size: int = 7,
        block_kernel_size: int = 7,
        drop_path_rate: float = 0.1,
        final_activation: Any = "linear",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        enable_deep_supervision: bool = False,
        output_channels: int | None = None,
        *,
        include_top: bool = True,
        downsample: str = "max",
        dropout_rate: float = 0.0,
        equivariant_block: str = "scale_layernorm",
        layer_scale_init_value: float = 1e-6,
        residual_learning: bool = False,
        zero_mean_stem: bool = False,
        remat: bool = False,
        seed: int | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments = {
            "input_shape": tuple(input_shape),
            "depth": depth,
            "initial_filters": initial_filters,
            "filter_multiplier": filter_multiplier,
            "blocks_per_level": blocks_per_level,
            "convnext_version": convnext_version,
            "stem_kernel_size": stem_kernel_size,
            "block_kernel_size": block_kernel_size,
            "drop_path_rate": drop_path_rate,
            "final_activation": keras.activations.get(final_activation),
            "use_bias": use_bias,
            "kernel_initializer": keras.initializers.get(kernel_initializer),
            "kernel_regularizer": keras.regularizers.get(kernel_regularizer),
            "enable_deep_supervision": enable_deep_supervision,
            "output_channels": output_channels,
            "include_top": include_top,
            "downsample": downsample,
            "dropout_rate": dropout_rate,
            "equivariant_block": equivariant_block,
            "layer_scale_init_value": layer_scale_init_value,
            "residual_learning": residual_learning,
            "zero_mean_stem": zero_mean_stem,
            "remat": remat,
            "seed": seed,
        }
        check_arguments(arguments)
        check_names(kwargs, arguments)
        policy = keras.dtype_policies.get(dtype if dtype is not None else keras.config.dtype_policy())

        stem, inputs, outputs = build_graph(arguments, policy)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.dtype_policy = policy
        self.stem = stem
        self.filter_sizes = filter_sizes(arguments)
        self.input_channels = arguments["input_shape"][2]
        self._input_shape = arguments.pop("input_shape")
        if output_channels is None:
            arguments["output_channels"] = self.input_channels
        for name, value in arguments.items():
            setattr(self, name, value)
        self._argument_names = ("input_shape", *arguments)

    def __call__(self, inputs, *args, **kwargs):
        if len(getattr(inputs, "shape", ())) == 4 and inputs.shape[0] == 0:
            raise ArgumentError("inputs", "must hold at least one image", tuple(inputs.shape))
        return super().__call__(inputs, *args, **kwargs)

    def load_weights(self, filepath, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Load a `.weights.h5` or `.keras` file whose weights are exactly this model's.

        Args:
            filepath: The file.
            skip_mismatch: Load what fits and leave the rest as it is, as Keras does.
            **kwargs: Further arguments of `keras.Model.load_weights`.

        Raises:
            WeightsError: The file is broken or holds the weights of another architecture; the message names the first
                mismatch, and no weight has changed.
        """
        if str(filepath).endswith((".weights.h5", ".keras")) and not skip_mismatch:
            check_weights_file(self, filepath)
        super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)

    @property
    def input_shape(self) -> tuple[int | None, int | None, int]:
        """`(height, width, channels)` as given to the constructor, without the batch."""
        return self._input_shape

    @classmethod
    def from_variant(cls, variant: str, **kwargs: Any) -> ConvUNextModel:
        """Return the model of a named size; `kwargs` override any constructor argument.

        Raises:
            ValueError: The variant is unknown; the message lists the known ones.
        """
        if variant not in cls.MODEL_VARIANTS:
            raise ArgumentError("variant", f"must be one of {list(cls.MODEL_VARIANTS)}", variant)
        return cls(**{**cls.MODEL_VARIANTS[variant], **kwargs})

    @classmethod
    def from_preset(cls, preset: str | os.PathLike, **kwargs: Any) -> ConvUNextModel:
        """Return a trained model.

        Args:
            preset: Name of a preset that ships with the package, such as `"denoise-gray"`, or a preset's folder.
            **kwargs: Constructor arguments that change no weight, such as `dtype`.

        Raises:
            ValueError: There is no such preset, or its weights do not fit.
            ConvUNextError: A file of it is damaged; loading checks the SHA-256 of what states one.

        Example:
            >>> model = ConvUNextModel.from_preset("denoise-gray")
        """
        arguments, arrays = read_preset(preset)
        cls.check_stored(arguments, {name: a.shape for name, a in arrays.items()}, preset_folder(preset) / CONFIG)
        model = cls(**{"kernel_initializer": "zeros", **arguments, **kwargs})
        assign_weights(model, arrays, source=str(preset))
        return model

    @classmethod
    def check_stored(cls, config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], path: Path) -> None:
        """Raise `FileError` unless a config can be built, of a network no larger than the weights stored for it.

        Args:
            config: Constructor arguments, from a file.
            stored: Shape of each weight of the file by its name.
            path: The file.
        """
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {
            parameter.name: parameter.default for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD
        }
        arguments = {**defaults, **config}
        try:
            check_names(arguments, defaults)
            check_stored({**arguments, "input_shape": tuple(arguments["input_shape"])}, stored)
        except ArgumentError as error:
            reason = f"cannot be built: `{error.subject}` {error.reason}"
            raise FileError(str(path), reason, error.remedy or "Get it again.") from error
        except (ValueError, TypeError) as error:  # of Keras
            raise FileError(str(path), f"cannot be built: {error}.", "Get it again.") from error

    def save_to_preset(
        self, folder: str | os.PathLike, card: ModelCard | Mapping[str, Any] | None = None, dtype: str = "float32"
    ) -> None:
        """Write configuration, weights with their SHA-256 and card to a new folder that `from_preset` reads.

        Args:
            folder: The new folder; it must not exist.
            card: Its card; default: an empty one.
            dtype: Type in which the weights are stored: `"float32"`, or `"float16"` for half the size.

        Raises:
            ConvUNextError: The folder exists or cannot be written.
        """
        save_preset(self, Path(folder), card or {}, dtype)

    def get_config(self) -> dict[str, Any]:
        config = {name: getattr(self, name) for name in self._argument_names}
        config["final_activation"] = keras.activations.serialize(self.final_activation)
        config["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        config["kernel_regularizer"] = keras.regularizers.serialize(self.kernel_regularizer)
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {**config, "dtype": dtype, "name": self.name, "trainable": self.trainable}


def create_convunext_variant(
    variant: str,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    enable_deep_supervision: bool = False,
    output_channels: int | None = None,
    use_bias: bool = True,
    **kwargs: Any,
) -> ConvUNextModel:
    """Return a ConvUNext of a named size.

    Args:
        variant: `"tiny"`, `"small"`, `"base"`, `"large"` or `"xlarge"`.
        input_shape: `(height, width, channels)`; height and width may be `None`.
        enable_deep_supervision: Return `depth` outputs, finest first.
        output_channels: Channels of the outputs; default: those of the input.
        use_bias: Whether layers have additive parameters; `False` makes the model scale-equivariant.
        **kwargs: Any other argument of `ConvUNextModel`; overrides the variant's own.

    Raises:
        ValueError: The variant is unknown or an argument is out of its range.

    Example:
        >>> model = create_convunext_variant("tiny", output_channels=1, final_activation="sigmoid")
    """
    return ConvUNextModel.from_variant(
        variant,
        input_shape=input_shape,
        enable_deep_supervision=enable_deep_supervision,
        output_channels=output_channels,
        use_bias=use_bias,
        **kwargs,
    )


def create_inference_model_from_training_model(training_model: ConvUNextModel, **kwargs: Any) -> ConvUNextModel:
    """Return a model of one output that is bit-identical to the first output of a deeply supervised model.

    Args:
        training_model: The trained model, which does not change. It is returned itself if it has one output and nothing
            is overridden.
        **kwargs: Constructor arguments to override, such as `input_shape=(None, None, 3)`.

    Raises:
        WeightsError: A weight has no counterpart in the other model. Only the heads of deep supervision are dropped.

    Example:
        >>> inference_model = create_inference_model_from_training_model(training_model)
    """
    if not isinstance(training_model, ConvUNextModel):
        raise ArgumentError("training_model", "must be a ConvUNextModel", type(training_model).__name__)
    changes = {"enable_deep_supervision": False, **kwargs}
    config = training_model.get_config()
    unknown = sorted(set(changes) - set(config))
    if unknown:
        raise ArgumentError("kwargs", f"must be among {sorted(config)}", unknown)
    if not training_model.enable_deep_supervision and not kwargs:
        return training_model
    model = ConvUNextModel.from_config({**config, **changes})
    heads = {head_name(level) for level in range(training_model.depth)} - {layer.name for layer in model.layers}
    transfer_weights(training_model, model, left_behind=heads)
    return model
