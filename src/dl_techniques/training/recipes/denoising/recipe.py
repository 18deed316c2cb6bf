"""Training of blind denoisers: clean images in, a model that removes Gaussian noise of any level out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.atomic import write_file
from dl_techniques.card import ModelCard, write_card
from dl_techniques.datasets.inspection import describe_images, inspect_pairs, read_pair
from dl_techniques.datasets.lazy import MemoryBudget
from dl_techniques.datasets.noise import add_gaussian_noise, estimate_sigma
from dl_techniques.datasets.normalization import in_unit
from dl_techniques.datasets.pairs import Pair
from dl_techniques.datasets.targets import ImageReader
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.images.display import to_display
from dl_techniques.metrics import denoising_psnr, estimate_gain, psnr
from dl_techniques.report import REPORT, Report
from dl_techniques.tasks.segmentation.scores import extremes
from dl_techniques.training.auto_settings import choose_precision
from dl_techniques.training.recipes.denoising.batches import (
    DenoisingSample,
    choose_pairs,
    find_images_of,
    training_patches,
)
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.trainer import MODEL, SupervisedTask, curve_of, facts_of, train_supervised, training_card

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.training.loop import Stage

VALIDATION_SIGMAS = (15.0, 25.0, 50.0)
SHOWN_SIGMA = 25.0


@dataclass(frozen=True)
class DenoisingResult:
    """What a run gave.

    Attributes:
        model: The inference model.
        figures: PSNR on the validation images at several levels of the noise, or the estimated gain, in dB.
        folder: Where model, log and report lie.
    """

    model: keras.Model
    figures: dict[str, float]
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT


def build_denoiser(config: DenoisingConfig, channels: int) -> keras.Model:
    """Return the untrained model of a run; it learns the difference of clean and noisy image."""
    from dl_techniques.models.convunext.model import ConvUNextModel

    return ConvUNextModel(
        input_shape=(None, None, channels),
        depth=config.depth,
        initial_filters=config.initial_filters,
        filter_multiplier=config.filter_multiplier,
        blocks_per_level=config.blocks_per_level,
        block_kernel_size=config.block_kernel_size,
        convnext_version=config.convnext_version,
        use_bias=config.use_bias,
        equivariant_block=config.equivariant_block,
        layer_scale_init_value=0.2,
        drop_path_rate=0.0,
        downsample="conv",
        residual_learning=True,
        zero_mean_stem=config.zero_mean_stem,
        seed=config.seed,
        dtype=config.precision,
    )


def train_denoiser(
    config: DenoisingConfig,
    console: Console,
    resume: bool = False,
    build: Callable[[DenoisingConfig, int], keras.Model] = build_denoiser,
) -> DenoisingResult:
    """Train a denoiser, or go on with a run that was stopped, and measure its averaged weights.

    Args:
        config: Settings; those of the first start when resuming, but for the number of steps.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.
        build: Makes the untrained model of settings and channels, the same at every call.

    Raises:
        FileError: An image or checkpoint cannot be read, or the folder cannot be written or holds a run already.
    """
    return train_supervised(lambda config, console: DenoisingTask(config, console, build), config, console, resume)


class DenoisingTask(SupervisedTask[DenoisingConfig, DenoisingResult]):
    """Clean images from noisy ones, learned from clean images, or from noisy ones alone.

    Args:
        config: Settings.
        console: Where to tell what was found.
        build: Makes the untrained model.

    Raises:
        FileError: Images are missing, broken, too small or too few; the first ten are named.
    """

    name = "denoise"
    score = None  # what is wanted is the average at the end, when the learning rate is zero

    @property
    def followed(self) -> str:
        return "gain" if self.config.noisy_only else f"psnr_{SHOWN_SIGMA:g}"

    def __init__(
        self,
        config: DenoisingConfig,
        console: Console,
        build: Callable[[DenoisingConfig, int], keras.Model] = build_denoiser,
    ) -> None:
        self.make = build
        self.applications = 2 if config.noisy_only else len(VALIDATION_SIGMAS)
        self.config = replace(config, precision=choose_precision(config.precision))
        budget, reader, channels = (
            MemoryBudget(round(config.cache_gb * 1e9)),
            ImageReader(),
            config.channels or "declared",
        )
        images, validation = find_images_of(config)
        self.inspection = inspect_pairs(images, console, reader, channels, budget, validation)
        facts = self.inspection.facts
        least = max(config.patch, config.final_patch)
        if small := [
            entry.pair.words(entry.pair.image) for entry in facts[: self.inspection.training] if min(entry.size) < least
        ]:
            remedy = "Remove it or choose smaller --patch and --final-patch."
            also = f"; so are {first_of(small[1:])}" if small[1:] else ""
            raise FileError(small[0], f"is smaller than a patch of {least} pixels{also}.", remedy)
        if config.gain > 0 and (below := [entry for entry in facts if entry.low < 0]):
            named = first_of([entry.pair.words(entry.pair.image.name) for entry in below])
            remedy = "Shift the images to begin at 0, or leave --gain out."
            rule = f"must be 0 where values are negative, as photons never are; in {len(below)} images: {named}"
            raise ArgumentError("gain", rule, config.gain, remedy)
        describe_images(self.inspection, console)
        largest = self.inspection.largest_float

        def read(pair: Pair) -> DenoisingSample:
            pixels, _ = self.inspection.decoded.pop(pair) or read_pair(pair, reader, channels)
            image = in_unit(pixels, largest)
            return DenoisingSample(pair.name, image, estimate_sigma(image) if config.noisy_only else 0.0)

        self.split(self.inspection.training, read)

    def whole(self, model: keras.Model) -> Function:
        from dl_techniques.models.convunext.function import keras_function
        from dl_techniques.models.convunext.model import ConvUNextModel

        # What `build` makes may be another network, of which nothing is known.
        return super().whole(model) if isinstance(model, ConvUNextModel) else keras_function(model)

    def choices(self) -> dict[str, str]:
        config = self.config
        late = config.phases[1]
        noise = f"Gaussian, sigma 0 to {config.sigma:g} of 255" + (", and shot noise" if config.gain else "")
        return {
            "later crops": f"{late.batch_size} of {late.patch}x{late.patch} pixels, in the last "
            f"{late.last - late.first} steps, while the learning rate falls",
            "noise": "that of the images; two noisier versions of each crop" if config.noisy_only else noise,
            "normalization": "none" if config.use_bias else "none: the model is scale-equivariant",
            "augmentation": "flips, rotations",
            "loss": "mean squared error" if config.noisy_only else "mean absolute error",
            "model": f"ConvUNext {config.convnext_version}{'' if config.use_bias else ' without bias'}, depth "
            f"{config.depth}, {config.initial_filters} channels at the finest level",
        }

    def build(self) -> keras.Model:
        from dl_techniques.training.loop import averaged_adamw
        from dl_techniques.training.schedule import WarmupStableDecay

        config, model = self.config, self.make(self.config, self.inspection.channels)
        rate = WarmupStableDecay(
            config.learning_rate, config.steps, config.cooldown, warmup=min(500, config.steps // 10)
        )
        momentum = min(0.999, max(0.0, 1 - 5 / config.steps))  # the average looks back over a fifth of a short run
        model.compile(
            optimizer=averaged_adamw(rate, momentum, config.accumulate), loss="mse" if config.noisy_only else "mae"
        )
        model.optimizer.build(model.trainable_variables)
        return model

    def stages(self) -> list[Stage]:
        from dl_techniques.training.loop import Stage

        def batches(number: int) -> Callable[[int], Iterator]:
            return lambda done: self._patches(number, done)

        return [Stage(phase.first, phase.last, batches(number)) for number, phase in enumerate(self.config.phases)]

    def batch_sizes(self) -> list[int]:
        return [phase.batch_size for phase in self.config.phases]

    def batches(self, done: int = 0) -> Iterator[tuple]:
        for number, phase in enumerate(self.config.phases):
            if done < phase.last:
                yield from self._patches(number, max(0, done - phase.first))

    def _patches(self, number: int, done: int) -> Iterator[tuple]:
        config = self.config
        return training_patches(self.training, config.phases[number], (config.seed, number), choose_pairs(config), done)

    def measure(self, function: Function) -> dict[str, float]:
        """Return PSNR at `VALIDATION_SIGMAS`, or its estimated gain where no image is clean, in dB."""

        def denoise(noisy: np.ndarray) -> np.ndarray:
            return function(noisy[None])[0]

        if not self.config.noisy_only:
            return {
                f"psnr_{sigma:g}": denoising_psnr(denoise, (sample.image for sample in self.validation), sigma)
                for sigma in VALIDATION_SIGMAS
            }
        gains = [
            estimate_gain(sample.image, denoise(sample.image), sample.sigma, denoise)
            for sample in self.validation
            if sample.sigma > 0
        ]
        return {"gain": float(np.mean(gains)) if gains else 0.0}

    def show(self, function: Function, number: int) -> list[tuple[str, np.ndarray]]:
        sample = self.validation[number]
        noisy = sample.image
        if not self.config.noisy_only:
            noisy = add_gaussian_noise(noisy, SHOWN_SIGMA / 255, np.random.default_rng(number))
        denoised = function(noisy[None])[0]
        low, high = (float(np.percentile(sample.image, share)) for share in (0.1, 99.9))
        row = [
            (f"noisy: {sample.name}", to_display(noisy, low, high)),
            ("denoised", to_display(denoised, low, high)),
            ("what was removed", to_display(noisy - denoised, -(high - low) / 4, (high - low) / 4)),
        ]
        if self.config.noisy_only:
            return row
        row[1] = (f"denoised, PSNR {psnr(np.clip(denoised, 0, 1), sample.image):.2f} dB", row[1][1])
        return [*row, ("clean", to_display(sample.image, low, high))]

    def finish(self, model: keras.Model, console: Console) -> DenoisingResult:
        from dl_techniques.training.checkpoint import save_model

        config, folder = self.config, self.config.output
        model = _in_float32(model)
        function = self.whole(model)
        figures = self.measure(function)
        noise = {"kind": "white Gaussian, level unknown to the model", "sigma": [0, config.sigma], "unit": "1/255"}
        if config.gain:
            noise |= {"kind": "Gaussian and Poisson, levels unknown to the model", "gain": [0, config.gain]}
        if config.noisy_only:
            noise = {"kind": "white Gaussian, as in the images that it was trained on"}
        card = ModelCard(
            normalization="none",
            value_range="that of the training images, 0 to 1" if config.use_bias else "any: scale-equivariant",
            output="the clean image, in the unit of the input",
            details={"noise": noise},
            **training_card(self),
            metrics={"images": len(self.validation), **figures},
        )
        save_model(model, folder / MODEL)
        write_card(folder / MODEL, card)
        write_file(folder / "metrics.json", json.dumps(dict(card.metrics), indent=2).encode())
        shown = ", ".join(f"{name} {value:.2f} dB" for name, value in figures.items())
        console.print(f"validation: {shown}", markup=False)
        write_file(folder / REPORT, self._report(function, model, figures).to_html().encode())
        return DenoisingResult(model, figures, folder.resolve())

    def _report(self, function: Function, model: keras.Model, figures: dict[str, float]) -> Report:
        folder = self.config.output
        if self.config.noisy_only:
            lead = f"{len(self.validation)} validation images, as noisy as the others; the gain is estimated (SURE)."
            chosen = [("validation", number) for number in range(min(6, len(self.validation)))]
        else:
            lead = f"{len(self.validation)} validation images that the model did not see in training; below, those "
            lead += f"with the lowest and the highest PSNR at sigma {SHOWN_SIGMA:g} of 255."
            chosen = extremes([self._psnr(function, number) for number in range(len(self.validation))])
        rows = []
        for word, number in chosen:
            (name, picture), *rest = self.show(function, number)
            rows.append([(f"{word}: {name}", picture), *rest])
        return Report(
            title=f"Denoising: {folder.name}",
            lead=lead,
            numbers={f"{name.replace('psnr_', 'PSNR, sigma ')}, dB": f"{value:.2f}" for name, value in figures.items()},
            curves={
                "Loss in training": curve_of(folder, "loss"),
                **{f"{name} on the validation images, dB": curve_of(folder, f"val_{name}") for name in figures},
            },
            facts=facts_of(self, model),
            rows=rows,
        )

    def _psnr(self, function: Function, number: int) -> float:
        image = self.validation[number].image
        noisy = add_gaussian_noise(image, SHOWN_SIGMA / 255, np.random.default_rng(number))
        return psnr(np.clip(function(noisy[None])[0], 0, 1), image)


def _in_float32(model: keras.Model) -> keras.Model:
    """Return the same model without the policy that it was trained with."""
    from dl_techniques.models.convunext.model import create_inference_model_from_training_model

    if model.dtype_policy.name == "float32":
        return model
    return create_inference_model_from_training_model(model, dtype="float32")
