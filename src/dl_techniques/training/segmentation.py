"""Training of segmenters: images and masks in, a model and a report out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques import __version__
from dl_techniques.card import write_card
from dl_techniques.data.files import write_file
from dl_techniques.training.choices import choose_augmentation, choose_patch
from dl_techniques.training.evaluation import Evaluation, describe_evaluation, evaluate, metrics_of
from dl_techniques.training.run import best_so_far, check_run, open_run, read_log, write_split
from dl_techniques.training.segmentation_data import (
    SegmentationData,
    load_data,
    segmentation_batches,
)  # fmt: skip
from dl_techniques.training.segmentation_report import REPORT, write_evaluation
from dl_techniques.training.settings import SegmentationConfig
from dl_techniques.training.supervision import supervision_weights

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel

BEST, MODEL = "best.keras", "model.keras"


@dataclass(frozen=True)
class SegmentationResult:
    """What a run gave.

    Attributes:
        evaluation: On the validation images, by the best weights.
        folder: Where model, log and report lie.
    """

    evaluation: Evaluation
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT


def train_segmenter(config: SegmentationConfig, console: Console, resume: bool = False) -> SegmentationResult:
    """Train a segmenter, or go on with a run that was stopped, and measure its best weights on the validation images.

    Args:
        config: Settings; those of the first start when resuming.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.

    Raises:
        FileError: Files are missing, broken or do not fit, or the folder cannot be written or holds a run already.
        ArgumentError: A setting does not fit the data.
    """
    import keras

    from dl_techniques.training.callbacks import Validation
    from dl_techniques.training.loop import Stage, fit_stages

    check_run(config.output, config, resume)
    data = load_data(config, console)
    patch, batch_size = choose_patch(config, data.inspection)
    augmentation = choose_augmentation(config, data.inspection)
    console.print(f"{config.steps} steps of {batch_size} crops of {patch}x{patch} pixels")

    def batches(done: int) -> Iterator[tuple]:
        return segmentation_batches(
            data.training, data.classes, augmentation, patch, batch_size, config.depth, config.steps, config.seed, done
        )

    with open_run(config.output, "segment", config, resume) as checkpoints:
        write_split(config.output, data.training, data.validation)
        keras.utils.set_random_seed(config.seed)
        validation = Validation(
            lambda function: measure_segmenter(function, data),
            "dice",
            config.output / BEST,
            best_so_far(config.output, "val_dice"),
            data.classes.activation,
        )
        fit_stages(
            lambda: build_segmenter(config, data),
            [Stage(0, config.steps, batches)],
            config.steps_per_epoch,
            checkpoints,
            [validation],
            console,
            resume,
        )
        return _finish(config, data, patch, batch_size, console)


def build_segmenter(config: SegmentationConfig, data: SegmentationData) -> ConvUNextModel:
    """Return the untrained model of a run, compiled; its outputs are logits."""

    from dl_techniques.losses import SegmentationLoss
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.training.loop import averaged_adamw
    from dl_techniques.training.schedule import warmup_cosine

    model = ConvUNextModel(
        input_shape=(None, None, data.inspection.channels),
        depth=config.depth,
        initial_filters=config.initial_filters,
        blocks_per_level=config.blocks_per_level,
        convnext_version=config.convnext_version,
        output_channels=data.classes.outputs,
        enable_deep_supervision=True,
        drop_path_rate=0.0,
        layer_scale_init_value=0.1,
        seed=config.seed,
    )
    model.compile(
        optimizer=averaged_adamw(warmup_cosine(config.learning_rate, config.steps), 0.99),
        loss=[SegmentationLoss(data.classes.activation) for _ in range(config.depth)],
        loss_weights=supervision_weights(config.depth),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def measure_segmenter(function: Function, data: SegmentationData) -> dict[str, float]:
    """Return mean Dice and IoU of a model that returns logits."""
    import keras

    activation = keras.activations.get(data.classes.activation)

    def probabilities(batch: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(function(batch))))

    confusion = evaluate(probabilities, data.validation, data.classes).confusion
    return {"dice": confusion.mean_dice, "iou": confusion.mean_iou}


def _finish(
    config: SegmentationConfig, data: SegmentationData, patch: int, batch_size: int, console: Console
) -> SegmentationResult:
    import keras

    from dl_techniques.models.convunext.function import keras_function

    model = keras.saving.load_model(config.output / BEST, compile=False, safe_mode=True)
    function = keras_function(model)
    result = evaluate(function, data.validation, data.classes)
    write_file(config.output / MODEL, (config.output / BEST).read_bytes())
    card = _card(config, data, patch, batch_size, result)
    write_card(config.output / MODEL, card)
    describe_evaluation(result, data.classes, console)
    log = read_log(config.output)
    write_evaluation(
        config.output,
        result,
        function,
        data.validation,
        data.classes,
        title=f"Segmentation: {config.output.name}",
        lead=f"{len(data.validation)} validation images that the model did not see in training.",
        curves={
            "Loss in training": [row["loss"] for row in log],
            "Mean Dice on the validation images": [row["val_dice"] for row in log],
        },
        facts={
            "model": f"ConvUNext {model.convnext_version}, depth {model.depth}, filters {model.filter_sizes}, "
            f"{model.count_params():,} parameters",
            "settings": ", ".join(f"{k}={v}" for k, v in asdict(config).items() if k != "output" and v is not None),
            "versions": f"convunext {__version__}, Keras {keras.__version__} on {keras.backend.backend()}",
            "files": "model.keras (the weights that were best on the validation images, with their card), log.csv, "
            "metrics.json, metrics.csv, split.csv, config.json, checkpoints/",
        },
    )
    return SegmentationResult(result, config.output.resolve())


def _card(
    config: SegmentationConfig, data: SegmentationData, patch: int, batch_size: int, result: Evaluation
) -> dict[str, Any]:
    digests = "".join(sorted(facts.digest for facts in data.inspection.facts))
    return {
        "task": "segment",
        "channels": data.inspection.channels,
        "normalization": "standardize",
        "value_range": "any: each image is brought to mean 0 and variance 1 before it goes in",
        "output": f"probabilities ({data.classes.activation})",
        **data.classes.as_card(),
        "training": {
            "images": len(data.training),
            "steps": config.steps,
            "patch": patch,
            "patches_in_a_step": batch_size,
            "seed": config.seed,
        },
        "data_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "metrics": metrics_of(result, data.classes),
    }
