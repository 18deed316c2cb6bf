"""Training of models that restore images, from pairs of what is and what it should be."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.atomic import write_file
from dl_techniques.card import ModelCard
from dl_techniques.datasets.augmentation import SYMMETRIES, Augmentation
from dl_techniques.datasets.batches import random_crop, seeded_batches
from dl_techniques.datasets.inspection import find_and_inspect, read_pair
from dl_techniques.datasets.normalization import in_unit
from dl_techniques.datasets.pairs import Pair
from dl_techniques.datasets.targets import ImageReader
from dl_techniques.images.display import to_display
from dl_techniques.metrics import psnr, ssim
from dl_techniques.report import REPORT, Report
from dl_techniques.tasks.segmentation.scores import extremes
from dl_techniques.training.auto_settings import choose_augmentation, settle
from dl_techniques.training.distribution import batch_share
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
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

LOSSES = {"charbonnier": "Charbonnier", "mse": "mean squared error", "mae": "mean absolute error"}


@dataclass(frozen=True)
class RestorationSample:
    """An image and what it should be.

    Attributes:
        name: Stem of the image's file.
        image: `(height, width, channels)`, float32, about [0, 1].
        target: `(height, width, target channels)`, float32, about [0, 1].
    """

    name: str
    image: np.ndarray
    target: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.image.nbytes + self.target.nbytes


@dataclass(frozen=True)
class RestorationResult:
    """What a run gave, on the validation images and by the best weights.

    Attributes:
        psnr: Mean PSNR in dB.
        before: Mean PSNR of the images as they came; `None` where they have other channels than their targets.
        folder: Where model, log and report lie.
    """

    psnr: float
    before: float | None
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT


def train_restorer(config: RestorationConfig, console: Console, resume: bool = False) -> RestorationResult:
    """Train a model that restores images, or go on with a run that was stopped, and measure its best weights.

    The model has no additive parameter and works in any unit of intensity; images and targets must share theirs.

    Args:
        config: Settings; those of the first start when resuming.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.

    Raises:
        FileError: Files are missing, broken or do not fit, or the folder cannot be written or holds a run already.
        ArgumentError: A setting does not fit the data.
    """
    return train_supervised(RestorationTask, config, console, resume)


class RestorationTask(SupervisedTask[RestorationConfig, RestorationResult]):
    """Images to other images, learned from pairs.

    Args:
        config: Settings.
        console: Where to tell what was found.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """

    name = "restore"
    score = "psnr"

    def __init__(self, config: RestorationConfig, console: Console) -> None:
        reader = ImageReader()
        self.inspection = find_and_inspect(config, config.targets, config.val_targets, console, reader)
        self.config = settle(config, self.inspection)
        largest = self.inspection.largest_float

        def read(pair: Pair) -> RestorationSample:
            arrays = self.inspection.decoded.pop(pair) or read_pair(pair, reader, config.channels or "declared")
            return RestorationSample(pair.name, *(in_unit(pixels, largest) for pixels in arrays))

        self.split(self.inspection.training, read)

    @property
    def residual(self) -> bool:
        """Whether the model learns the difference of target and image: they have the same channels."""
        return self.inspection.facts[0].target_channels == self.inspection.channels

    @property
    def _augmentation(self) -> Augmentation:
        chosen = choose_augmentation(self.config)
        kept = {name: getattr(chosen, name) for name in ("horizontal_flip", "vertical_flip", "rotation")}
        return replace(SYMMETRIES, **kept)

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
        from dl_techniques.training.schedule import warmup_cosine

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
        optimizer = averaged_adamw(warmup_cosine(config.learning_rate, config.steps), 0.99, config.accumulate)
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

    def measure(self, function: Function) -> dict[str, float]:
        """Return mean PSNR in dB and SSIM."""
        return dict(zip(("psnr", "ssim"), _mean(scores(function, self.validation)), strict=True))

    def show(self, function: Function, number: int) -> list[tuple[str, np.ndarray]]:
        sample = self.validation[number]
        restored = function(sample.image[None])[0]
        error = np.abs(restored - sample.target).mean(axis=2, keepdims=True)
        return [
            (sample.name, to_display(sample.image, 0, 1)),
            (f"restored, PSNR {_score(restored, sample.target)[0]:.2f} dB", to_display(restored, 0, 1)),
            ("target", to_display(sample.target, 0, 1)),
            ("error, eight times", to_display(error, 0, 1 / 8)),
        ]

    def finish(self, model: keras.Model, console: Console) -> RestorationResult:
        best = load_best(self.config)
        function = self.whole(best)
        after = scores(function, self.validation)
        figures = {"images": len(self.validation), **_means(after, "")}
        if self.residual:
            figures |= _means([_score(sample.image, sample.target) for sample in self.validation], "_before")
        card = ModelCard(
            normalization="none",
            value_range="any: the model is scale-equivariant",
            output="the restored image, in the unit of the input",
            **training_card(self),
            metrics=figures,
        )
        write_model(self.config, card)
        folder = self.config.output
        write_file(folder / "metrics.json", json.dumps(figures, indent=2).encode())
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        console.print(f"validation: {shown}", markup=False)
        rows = []
        for word, index in extremes([value for value, _ in after]):
            (name, picture), *rest = self.show(function, index)
            rows.append([(f"{word}: {name}", picture), *rest])
        report = Report(
            title=f"Restoration: {folder.name}",
            lead=f"{len(self.validation)} validation images that the model did not see in training.",
            numbers={
                "PSNR, dB": f"{figures['psnr_db']:.2f}",
                **({"before": f"{figures['psnr_db_before']:.2f}"} if self.residual else {}),
                **({"SSIM": f"{figures['ssim']:.4f}"} if "ssim" in figures else {}),
            },
            curves={
                "Loss in training": curve_of(folder, "loss"),
                "PSNR on the validation images, dB": curve_of(folder, "val_psnr"),
            },
            facts=facts_of(self, best),
            rows=rows,
        )
        write_file(folder / REPORT, report.to_html().encode())
        return RestorationResult(figures["psnr_db"], figures.get("psnr_db_before"), folder.resolve())


def scores(function: Function, samples: Sequence[RestorationSample]) -> list[tuple[float, float]]:
    """Return PSNR in dB and SSIM of each restored image, clipped to [0, 1]; SSIM is NaN below 11 pixels."""
    return [_score(function(sample.image[None])[0], sample.target) for sample in samples]


def _score(image: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    clipped = np.clip(image, 0, 1)
    return psnr(clipped, target), ssim(clipped, target) if min(target.shape[:2]) >= 11 else np.nan


def _mean(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return mean PSNR and SSIM, each of the images that have one; NaN if none has."""
    measured = [value for _, value in values if not np.isnan(value)]
    return float(np.mean([value for value, _ in values])), float(np.mean(measured)) if measured else np.nan


def _means(values: Sequence[tuple[float, float]], ending: str) -> dict[str, float]:
    mean_psnr, mean_ssim = _mean(values)
    figures = {f"psnr_db{ending}": mean_psnr, f"ssim{ending}": mean_ssim}
    return {name: value for name, value in figures.items() if not np.isnan(value)}
