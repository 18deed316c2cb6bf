"""Training of blind denoisers: clean images in, a model that removes Gaussian noise of any level out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dl_techniques.datasets.inspection import describe_images, inspect_pairs
from dl_techniques.datasets.lazy import MemoryBudget
from dl_techniques.datasets.noise import add_gaussian_noise, estimate_sigma
from dl_techniques.datasets.normalization import in_unit
from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.images.display import to_display
from dl_techniques.images.files import print_left_out
from dl_techniques.metrics import denoising_psnrs, estimate_gain, psnr
from dl_techniques.tasks.base import CaptionedPicture, Function
from dl_techniques.tasks.denoising.task import DenoisingTask
from dl_techniques.training.auto_settings import choose_precision
from dl_techniques.training.recipe import Recipe
from dl_techniques.training.recipes.denoising.batches import (
    DenoisingSample,
    choose_pairs,
    find_images_of,
    training_patches,
)
from dl_techniques.training.recipes.denoising.evaluation import DenoisingEvaluation
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.training.loop import Stage

VALIDATION_SIGMAS = (15.0, 25.0, 50.0)
SHOWN_SIGMA = 25.0


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


class DenoisingRecipe(Recipe[DenoisingConfig, DenoisingTask]):
    """Clean images from noisy ones, learned from clean images, or from noisy ones alone.

    `build` makes the untrained model of settings and channels, the same at every call.
    """

    title: ClassVar[str] = "Denoising"
    score: ClassVar[str | None] = None  # what is wanted is the average at the end, when the learning rate is zero

    def __init__(
        self,
        config: DenoisingConfig,
        console: Console,
        build: Callable[[DenoisingConfig, int], keras.Model] = build_denoiser,
    ) -> None:
        self._build = build
        self.passes = 2 if config.noisy_only else len(VALIDATION_SIGMAS)
        self.config = replace(config, precision=choose_precision(config.precision))
        self.task = DenoisingTask(self._noise(), not config.use_bias)
        images, validation = find_images_of(config)
        print_left_out(console, config.images, config.val_images)
        budget = MemoryBudget(round(config.cache_gb * 1e9))
        channels = config.channels or "declared"
        self.inspection = inspect_pairs(images, console, self.task.reader, channels, budget, validation)
        self._check()
        describe_images(self.inspection, console)
        self.split()

    @property
    def monitored(self) -> str:
        return "gain" if self.config.noisy_only else f"psnr_{SHOWN_SIGMA:g}"

    @property
    def lead(self) -> str:
        if self.config.noisy_only:
            return f"{len(self.validation)} validation images, as noisy as the others; the gain is estimated (SURE)."
        return f"{super().lead[:-1]}; PSNR of the pictures at sigma {SHOWN_SIGMA:g} of 255."

    def read(self, pair: Pair) -> DenoisingSample:
        image = in_unit(self.inspection.read(pair)[0], self.inspection.largest_float)
        return DenoisingSample(pair.name, image, estimate_sigma(image) if self.config.noisy_only else 0.0)

    def function(self, model: keras.Model) -> Function:
        from dl_techniques.models.convunext.function import keras_function
        from dl_techniques.models.convunext.model import ConvUNextModel

        # What `build` makes may be another network, of which nothing is known.
        return super().function(model) if isinstance(model, ConvUNextModel) else keras_function(model)

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

        config, model = self.config, self._build(self.config, self.inspection.channels)
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

    def evaluate(self, function: Function) -> DenoisingEvaluation:
        """Return PSNR at `VALIDATION_SIGMAS`, or its estimated gain where no image is clean, in dB."""

        def denoise(noisy: np.ndarray) -> np.ndarray:
            return function(noisy[None])[0]

        if self.config.noisy_only:
            gains = [self._gain(sample, denoise) for sample in self.validation]
            mean = float(np.nanmean(gains)) if np.isfinite(gains).any() else 0.0
            return DenoisingEvaluation(len(gains), {"gain": mean}, tuple(gains))
        found = {
            sigma: denoising_psnrs(denoise, (sample.image for sample in self.validation), sigma)
            for sigma in VALIDATION_SIGMAS
        }
        means = {f"psnr_{sigma:g}": float(np.mean(values)) for sigma, values in found.items()}
        return DenoisingEvaluation(len(self.validation), means, tuple(found[SHOWN_SIGMA]))

    def pictures(self, function: Function, number: int) -> list[CaptionedPicture]:
        sample = self.validation[number]
        noisy = sample.image
        if not self.config.noisy_only:
            noisy = add_gaussian_noise(noisy, SHOWN_SIGMA / 255, np.random.default_rng(number))
        denoised = function(noisy[None])[0]
        low, high = (float(np.percentile(sample.image, share)) for share in (0.1, 99.9))
        row = [
            (f"noisy: {sample.name}", to_display(noisy, low, high)),
            ("denoised", to_display(denoised, low, high)),
            ("difference", to_display(noisy - denoised, -(high - low) / 4, (high - low) / 4)),
        ]
        if self.config.noisy_only:
            return row
        row[1] = (f"denoised, PSNR {psnr(np.clip(denoised, 0, 1), sample.image):.2f} dB", row[1][1])
        return [*row, ("clean", to_display(sample.image, low, high))]

    def _gain(self, sample: DenoisingSample, denoise: Function) -> float:
        """Return the estimated gain in dB; NaN for an image without noise."""
        if not sample.sigma > 0:
            return np.nan
        return estimate_gain(sample.image, denoise(sample.image), sample.sigma, denoise)

    def _patches(self, number: int, done: int) -> Iterator[tuple]:
        config = self.config
        return training_patches(self.training, config.phases[number], (config.seed, number), choose_pairs(config), done)

    def _noise(self) -> dict:
        """Return the noise that the model learns to remove, as the card says it."""
        config = self.config
        if config.noisy_only:
            return {"kind": "white Gaussian, as in the images that it was trained on"}
        sigma = {"sigma": [0, config.sigma], "unit": "1/255"}
        if config.gain:
            return {"kind": "Gaussian and Poisson, levels unknown to the model", **sigma, "gain": [0, config.gain]}
        return {"kind": "white Gaussian, level unknown to the model", **sigma}

    def _check(self) -> None:
        """Refuse images that the settings do not fit."""
        config, facts = self.config, self.inspection.facts
        least = max(config.patch, config.final_patch)
        trained = [entry for entry in facts[: self.inspection.training] if min(entry.size) < least]
        if small := [entry.pair.words(entry.pair.image) for entry in trained]:
            remedy = "Remove it or choose smaller --patch and --final-patch."
            also = f"; so are {first_of(small[1:])}" if small[1:] else ""
            raise FileError(small[0], f"is smaller than a patch of {least} pixels{also}.", remedy)
        if config.gain > 0 and (below := [entry for entry in facts if entry.low < 0]):
            named = first_of([entry.pair.words(entry.pair.image.name) for entry in below])
            remedy = "Shift the images to begin at 0, or leave --gain out."
            rule = f"must be 0 if values are negative (photon counts are not); in {len(below)} images: {named}"
            raise ArgumentError("gain", rule, config.gain, remedy)
