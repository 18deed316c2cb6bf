"""Training of segmenters: images and masks in, a model and a report out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dl_techniques.card import ModelCard
from dl_techniques.datasets.inspection import find_and_inspect
from dl_techniques.inference.evaluation import REPORT, write_evaluation
from dl_techniques.tasks.segmentation.inspection import (
    LabelReader,
    MaskReader,
    class_shares,
    describe_classes,
    find_classes,
)
from dl_techniques.tasks.segmentation.scores import (
    Evaluation,
    describe_evaluation,
    error_row,
    evaluate,
    metrics_of,
    predict,
)
from dl_techniques.training.auto_settings import choose_augmentation, settle
from dl_techniques.training.recipes.segmentation.batches import read_sample, segmentation_batches
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.supervision import supervision_weights
from dl_techniques.training.trainer import (
    SupervisedTask,
    curve_of,
    facts_of,
    load_best,
    train_supervised,
    training_card,
    write_model,
)

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel


class LossChoice(NamedTuple):
    """A loss in words, and as settings of `SegmentationLoss`."""

    words: str
    settings: dict[str, Any]


LOSSES = {
    "dice_ce": LossChoice("Dice and cross-entropy", {}),
    "dice": LossChoice("Dice", {"cross_entropy": 0.0}),
    "cross_entropy": LossChoice("cross-entropy", {"dice": 0.0}),
    "focal": LossChoice("focal, exponent 2", {"dice": 0.0, "gamma": 2.0}),  # Lin et al. 2017, section 5.1
    "tversky": LossChoice(  # Salehi et al. 2017, table 1
        "Tversky, 0.3 for false alarms, 0.7 for misses", {"cross_entropy": 0.0, "alpha": 0.3, "beta": 0.7}
    ),
}


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
    return train_supervised(SegmentationTask, config, console, resume)


class SegmentationTask(SupervisedTask[SegmentationConfig, SegmentationResult]):
    """Classes of pixels, learned from masks.

    Args:
        config: Settings.
        console: Where to tell what was found.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """

    name = "segment"
    score = "dice"

    def __init__(self, config: SegmentationConfig, console: Console) -> None:
        reader = LabelReader(config.ignore) if config.mask_kind == "labels" else MaskReader()
        self.inspection = find_and_inspect(config, config.masks, config.val_masks, console, reader)
        classes = find_classes(self.inspection, config.mask_kind, config.classes, config.ignore)
        describe_classes(self.inspection, classes, console)
        kind = "labels" if classes.labels else "foreground" if classes.foreground else "classes"
        self.config = replace(settle(config, self.inspection), mask_kind=kind, classes=classes.names)
        self.classes = classes
        self.activation = classes.activation
        decoded, channels = self.inspection.decoded, config.channels or "declared"
        self.split(self.inspection.training, lambda pair: read_sample(pair, classes, channels, decoded=decoded))

    def found(self) -> dict[str, list[dict[str, Any]]]:
        shares = class_shares(self.inspection, self.classes)
        return {"classes": [{"name": name, "share": share, "images": images} for name, share, images in shares]}

    def choices(self) -> dict[str, str]:
        return {
            "normalization": "each image to mean 0 and variance 1",
            "augmentation": str(choose_augmentation(self.config)),
            "loss": f"{LOSSES[self.config.loss].words} ({self.classes.activation}) at {self.config.depth} levels"
            + (", the coarser less and less" if self.config.anneal_supervision else ""),
            "model": f"ConvUNext {self.config.convnext_version}, depth {self.config.depth}, "
            f"{self.config.initial_filters} channels at the finest level",
        }

    def build(self) -> ConvUNextModel:
        """Return the untrained model, compiled; its outputs are logits."""
        from dl_techniques.losses import SegmentationLoss
        from dl_techniques.models.convunext.model import ConvUNextModel
        from dl_techniques.training.loop import averaged_adamw
        from dl_techniques.training.schedule import warmup_cosine

        config, chosen = self.config, LOSSES[self.config.loss].settings
        model = ConvUNextModel(
            input_shape=(None, None, self.inspection.channels),
            depth=config.depth,
            initial_filters=config.initial_filters,
            blocks_per_level=config.blocks_per_level,
            convnext_version=config.convnext_version,
            output_channels=self.classes.outputs,
            enable_deep_supervision=True,
            drop_path_rate=0.0,
            layer_scale_init_value=0.1,
            seed=config.seed,
            dtype=config.precision,
        )
        model.compile(
            optimizer=averaged_adamw(warmup_cosine(config.learning_rate, config.steps), 0.99, config.accumulate),
            loss=[SegmentationLoss(self.classes.activation, **chosen) for _ in range(config.depth)],
            loss_weights=None if config.anneal_supervision else supervision_weights(config.depth),
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def batches(self, done: int = 0) -> Iterator[tuple]:
        augmentation = choose_augmentation(self.config)
        return segmentation_batches(self.training, self.classes, augmentation, self.config, done)

    def measure(self, function: Function) -> dict[str, float]:
        """Return mean Dice and IoU."""
        confusion = evaluate(self._probabilities(function), self.validation, self.classes).confusion
        return {"dice": confusion.mean_dice, "iou": confusion.mean_iou}

    def show(self, function: Function, number: int) -> list[tuple[str, np.ndarray]]:
        sample = self.validation[number]
        predicted, _ = predict(self._probabilities(function), sample.image, self.classes)
        return error_row("preview", sample, predicted, 0.0)

    def finish(self, model: keras.Model, console: Console) -> SegmentationResult:
        best = load_best(self.config)
        function = self.whole(best)
        result = evaluate(function, self.validation, self.classes)
        card = ModelCard(
            normalization="standardize",
            value_range="any: each image is brought to mean 0 and variance 1 before it goes in",
            output=f"probabilities ({self.classes.activation})",
            details=self.classes.as_card(),
            **training_card(self),
            metrics=metrics_of(result, self.classes),
        )
        write_model(self.config, card)
        describe_evaluation(result, self.classes, console)
        folder = self.config.output
        write_evaluation(
            folder,
            result,
            function,
            self.validation,
            self.classes,
            title=f"Segmentation: {folder.name}",
            lead=f"{len(self.validation)} validation images that the model did not see in training.",
            curves={
                "Loss in training": curve_of(folder, "loss"),
                "Mean Dice on the validation images": curve_of(folder, "val_dice"),
            },
            facts=facts_of(self, best),
        )
        return SegmentationResult(result, folder.resolve())

    def _probabilities(self, function: Function) -> Function:
        """Return the training model's function with the activation that the inference model ends in."""
        import keras

        activation = keras.activations.get(self.classes.activation)
        return lambda batch: keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(function(batch))))
