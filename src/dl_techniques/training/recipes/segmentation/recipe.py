"""Training of segmenters: classes of pixels, learned from masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from dl_techniques.datasets.inspection import find_and_inspect
from dl_techniques.tasks.base import CaptionedPicture
from dl_techniques.tasks.segmentation.inspection import class_shares, describe_classes, find_classes, telling_pairs
from dl_techniques.tasks.segmentation.readers import AlphaReader, LabelReader, MaskReader
from dl_techniques.tasks.segmentation.task import SegmentationTask
from dl_techniques.training.auto_settings import choose_augmentation, resolve_settings
from dl_techniques.training.recipe import Recipe
from dl_techniques.training.recipes.segmentation.batches import segmentation_batches
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.supervision import supervision_weights

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.model import ConvUNextModel


LOSSES: dict[str, tuple[str, dict[str, Any]]] = {  # in words, and as settings of `SegmentationLoss`
    "dice_ce": ("Dice and cross-entropy", {}),
    "dice": ("Dice", {"cross_entropy": 0.0}),
    "cross_entropy": ("cross-entropy", {"dice": 0.0}),
    "focal": ("focal, exponent 2", {"dice": 0.0, "gamma": 2.0}),  # Lin et al. 2017, section 5.1
    # Salehi et al. 2017, table 1
    "tversky": ("Tversky, 0.3 for false alarms, 0.7 for misses", {"cross_entropy": 0.0, "alpha": 0.3, "beta": 0.7}),
}


class SegmentationRecipe(Recipe[SegmentationConfig, SegmentationTask]):
    """Classes of pixels, learned from masks; raises what `find_and_inspect` and `find_classes` raise."""

    title: ClassVar[str] = "Segmentation"
    score: ClassVar[str | None] = "dice"

    def __init__(self, config: SegmentationConfig, console: Console) -> None:
        readers = {"labels": LabelReader(config.ignore), "alpha": AlphaReader()}
        reader = readers.get(config.mask_kind, MaskReader())
        self.inspection = find_and_inspect(config, config.masks, config.val_masks, console, reader)
        classes = find_classes(self.inspection, config.mask_kind, config.classes, config.ignore)
        describe_classes(self.inspection, classes, console)
        kind = "foreground" if classes.foreground else "classes"
        kind = config.mask_kind if config.mask_kind in readers else kind
        self.config = replace(resolve_settings(config, self.inspection), mask_kind=kind, classes=classes.names)
        self.task = SegmentationTask(classes)
        self.split()

    def found(self) -> dict[str, list[dict[str, Any]]]:
        shares = class_shares(self.inspection, self.task.classes)
        return {"classes": [{"name": name, "share": share, "images": images} for name, share, images in shares]}

    def understood(self) -> list[list[CaptionedPicture]]:
        pairs = telling_pairs(self.inspection)
        return [self.task.understood(pair, *self.inspection.read(pair)) for pair in pairs]

    def choices(self) -> dict[str, str]:
        config = self.config
        return {
            "normalization": "each image to mean 0 and variance 1",
            "augmentation": str(choose_augmentation(config)),
            "loss": f"{LOSSES[config.loss][0]} ({self.task.activation}) at {config.depth} levels"
            + (", weights of coarser levels falling to zero" if config.anneal_supervision else ""),
            "model": f"ConvUNext {config.convnext_version}, depth {config.depth}, "
            f"{config.initial_filters} channels at the finest level",
        }

    def build(self) -> ConvUNextModel:
        from dl_techniques.losses import SegmentationLoss
        from dl_techniques.models.convunext.model import ConvUNextModel
        from dl_techniques.training.loop import averaged_adamw, build_loss_trackers
        from dl_techniques.training.schedule import WarmupCosine

        config, chosen = self.config, LOSSES[self.config.loss][1]
        model = ConvUNextModel(
            input_shape=(None, None, self.inspection.channels),
            depth=config.depth,
            initial_filters=config.initial_filters,
            blocks_per_level=config.blocks_per_level,
            convnext_version=config.convnext_version,
            output_channels=self.task.classes.outputs,
            enable_deep_supervision=True,
            drop_path_rate=0.0,
            layer_scale_init_value=0.1,
            seed=config.seed,
            dtype=config.precision,
        )
        model.compile(
            optimizer=averaged_adamw(WarmupCosine(config.learning_rate, config.steps), 0.99, config.accumulate),
            loss=[SegmentationLoss(self.task.classes.activation, **chosen) for _ in range(config.depth)],
            loss_weights=None if config.anneal_supervision else supervision_weights(config.depth),
        )
        model.optimizer.build(model.trainable_variables)
        build_loss_trackers(model, self.task.classes.outputs + 1)
        return model

    def batches(self, done: int = 0) -> Iterator[tuple]:
        augmentation = choose_augmentation(self.config)
        return segmentation_batches(self.training, self.task.classes, augmentation, self.config, done)
