"""Training of models that restore images, from pairs of a degraded image and its target."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dl_techniques.datasets.augmentation import SYMMETRIES, Augmentation
from dl_techniques.datasets.batches import random_crop, seeded_batches
from dl_techniques.datasets.inspection import find_and_inspect
from dl_techniques.tasks.restoration.task import RestorationTask
from dl_techniques.training.auto_settings import choose_augmentation, resolve_settings
from dl_techniques.training.distribution import batch_share
from dl_techniques.training.recipe import Recipe
from dl_techniques.training.recipes.restoration.settings import RestorationConfig

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.model import ConvUNextModel

LOSSES = {"charbonnier": "Charbonnier", "mse": "mean squared error", "mae": "mean absolute error"}


class RestorationRecipe(Recipe[RestorationConfig, RestorationTask]):
    """Images to other images, learned from pairs that share their unit of intensity.

    The model has no additive parameter and works in any unit.
    """

    title: ClassVar[str] = "Restoration"
    score: ClassVar[str | None] = "psnr"

    def __init__(self, config: RestorationConfig, console: Console) -> None:
        self.task = RestorationTask()
        self.inspection = find_and_inspect(config, config.targets, config.val_targets, console, self.task.reader)
        self.config = resolve_settings(config, self.inspection)
        self.split()

    @property
    def residual(self) -> bool:
        """Whether the model learns the difference of target and image: they have the same channels."""
        return self.inspection.facts[0].target_channels == self.inspection.channels

    @property
    def _augmentation(self) -> Augmentation:
        chosen = choose_augmentation(self.config)
        flips = {name: getattr(chosen, name) for name in ("horizontal_flip", "vertical_flip", "rotation")}
        return replace(SYMMETRIES, **flips)

    def choices(self) -> dict[str, str]:
        return {
            "normalization": "none: the model is scale-equivariant",
            "augmentation": str(self._augmentation),
            "loss": LOSSES[self.config.loss] + (", of the difference to the image" if self.residual else ""),
            "model": f"ConvUNext v1 without bias, depth {self.config.depth}, "
            f"{self.config.initial_filters} channels at the finest level",
        }

    def build(self) -> ConvUNextModel:
        import keras

        from dl_techniques.losses import CharbonnierLoss
        from dl_techniques.models.convunext.model import ConvUNextModel
        from dl_techniques.training.loop import averaged_adamw
        from dl_techniques.training.schedule import WarmupCosine

        config = self.config
        model = ConvUNextModel(
            input_shape=(None, None, self.inspection.channels),
            output_channels=self.inspection.facts[0].target_channels,
            depth=config.depth,
            initial_filters=config.initial_filters,
            blocks_per_level=config.blocks_per_level,
            block_kernel_size=3,
            convnext_version="v1",
            use_bias=False,
            equivariant_block="no_norm",
            layer_scale_init_value=0.2,
            drop_path_rate=0.0,
            downsample="conv",
            residual_learning=self.residual,
            seed=config.seed,
            dtype=config.precision,
        )
        optimizer = averaged_adamw(WarmupCosine(config.learning_rate, config.steps), 0.99, config.accumulate)
        losses = {
            "charbonnier": CharbonnierLoss,
            "mse": keras.losses.MeanSquaredError,
            "mae": keras.losses.MeanAbsoluteError,
        }
        model.compile(optimizer=optimizer, loss=losses[config.loss]())
        model.optimizer.build(model.trainable_variables)
        return model

    def batches(self, done: int = 0) -> Iterator[tuple]:
        config = self.config
        patch, batch_size = typing.cast("tuple[int, int]", (config.patch, config.batch_size))
        augmentation = self._augmentation

        def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            sample = self.training[int(rng.integers(len(self.training)))]
            return augmentation(*random_crop(sample.image, sample.target, patch, rng), rng)

        return seeded_batches(pair, config.steps, batch_size, config.seed, done, threads=2, share=batch_share())
