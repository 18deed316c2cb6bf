"""Training of blind denoisers: clean images in, a model that removes Gaussian noise of any level out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.data.files import find_images, read_pixels, unit_range
from dl_techniques.data.noise import add_gaussian_noise
from dl_techniques.data.pipeline import seeded_batches
from dl_techniques.errors import FileError
from dl_techniques.training.settings import DenoisingConfig, Phase

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.model import ConvUNextModel

VALIDATION_SIGMAS = (15.0, 25.0, 50.0)


def build_denoiser(config: DenoisingConfig) -> ConvUNextModel:
    """Return the untrained model of a run; it learns the difference of clean and noisy image."""
    from dl_techniques.models.convunext.model import ConvUNextModel

    return ConvUNextModel(
        input_shape=(None, None, config.channels),
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
        seed=config.seed,
    )


def train_denoiser(
    config: DenoisingConfig,
    console: Console,
    resume: bool = False,
    build: Callable[[DenoisingConfig], keras.Model] = build_denoiser,
) -> keras.Model:
    """Train a denoiser, or go on with a run that was stopped, and return it with its averaged weights.

    Args:
        config: Settings; those of the first start when resuming, but for the number of steps.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.
        build: Makes the untrained model, the same at every call.

    Raises:
        FileError: An image or checkpoint cannot be read, or the folder cannot be written or holds a run already.
    """
    import keras

    from dl_techniques.training.callbacks import DenoisingValidation
    from dl_techniques.training.checkpoint import save_model
    from dl_techniques.training.loop import Stage, fit_stages
    from dl_techniques.training.run import check_run, open_run

    check_run(config.output, config, resume)
    images = load_clean_images(config.images, config.channels, max(config.patch, config.final_patch))
    if len(images) <= config.held_out:
        count = len(images)
        reason = f"holds {count} images; {config.held_out} are held out and none is left to train on."
        raise FileError(str(config.images), reason, "Add images or hold out fewer.")
    held_out, training = images[: config.held_out], images[config.held_out :]
    console.print(f"{len(training)} images to train on, {len(held_out)} held out")
    stages = [
        Stage(
            phase.first,
            phase.last,
            lambda done, phase=phase, number=number: noisy_patches(
                training, phase, (config.seed, number), config.sigma, done
            ),
        )
        for number, phase in enumerate(config.phases)
    ]
    with open_run(config.output, "denoise", config, resume) as checkpoints:
        keras.utils.set_random_seed(config.seed)
        model = fit_stages(
            lambda: _compiled(build(config), config),
            stages,
            config.steps_per_epoch,
            checkpoints,
            [DenoisingValidation(held_out, VALIDATION_SIGMAS)],
            console,
            resume,
        )
        model.optimizer.finalize_variable_values(model.trainable_variables)
        save_model(model, config.output / "model.keras")
    return model


def _compiled(model: keras.Model, config: DenoisingConfig) -> keras.Model:
    from dl_techniques.training.loop import averaged_adamw
    from dl_techniques.training.schedule import WarmupStableDecay

    rate = WarmupStableDecay(config.learning_rate, config.steps, config.cooldown)
    model.compile(optimizer=averaged_adamw(rate, 0.999), loss="mae")
    model.optimizer.build(model.trainable_variables)
    return model


def load_clean_images(folder: Path, channels: int, least: int) -> list[np.ndarray]:
    """Return the images of a folder, sorted by name, `(height, width, channels)` of their own integer type.

    Raises:
        FileError: The folder holds no image, or one that is broken or smaller than `least` pixels.
    """
    paths = find_images([folder])
    images = [read_pixels(path, channels) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if min(image.shape[:2]) < least:
            raise FileError(
                str(path), f"is smaller than a patch of {least} pixels.", "Remove it or choose a smaller patch."
            )
    return images


def noisy_patches(
    images: Sequence[np.ndarray], phase: Phase, seed: tuple[int, int], sigma: float, done: int = 0
) -> Iterator[tuple]:
    """Yield a phase's remaining batches of noisy and clean patches; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32, in [0, 1] before the noise.

    Args:
        images: Clean images, `(height, width, channels)`, of an integer type.
        phase: Size and number of the patches.
        seed: Seed of the run and number of the phase.
        sigma: Largest standard deviation of the noise, in units of 1/255; each patch draws its own from 0 to it.
        done: Steps of the phase that are done.
    """
    size = phase.patch

    def patch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image = images[int(rng.integers(len(images)))]
        top, left = (int(rng.integers(extent - size + 1)) for extent in image.shape[:2])
        crop = np.rot90(image[top : top + size, left : left + size], int(rng.integers(4)))
        clean = unit_range(crop[:, ::-1] if rng.integers(2) else crop)
        return add_gaussian_noise(clean, rng.uniform(0.0, sigma) / 255, rng), clean

    return seeded_batches(patch, phase.last - phase.first, phase.batch_size, seed[0] + 1_000_003 * seed[1], done)
