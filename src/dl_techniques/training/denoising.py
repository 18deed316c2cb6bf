"""Training of blind denoisers: clean images in, a model that removes Gaussian noise of any level out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.data.files import find_images, read_image
from dl_techniques.data.noise import add_gaussian_noise, add_poisson_gaussian_noise, estimate_sigma, recorrupt
from dl_techniques.data.normalization import to_one_unit
from dl_techniques.data.pipeline import seeded_batches
from dl_techniques.errors import FileError
from dl_techniques.metrics import denoising_psnr, estimate_gain
from dl_techniques.training.settings import DenoisingConfig, Phase

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
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

    from dl_techniques.training.callbacks import Validation
    from dl_techniques.training.checkpoint import save_model
    from dl_techniques.training.loop import Stage, fit_stages
    from dl_techniques.training.run import check_run, open_run

    check_run(config.output, config, resume)
    images = load_images(config.images, config.channels, max(config.patch, config.final_patch))
    if len(images) <= config.held_out:
        count = len(images)
        reason = f"holds {count} images; {config.held_out} are held out and none is left to train on."
        raise FileError(str(config.images), reason, "Add images or hold out fewer.")
    held_out, training = images[: config.held_out], images[config.held_out :]
    console.print(f"{len(training)} images to train on, {len(held_out)} held out")
    make_pair = choose_pairs(config, training)
    stages = [
        Stage(
            phase.first,
            phase.last,
            lambda done, phase=phase, number=number: training_patches(
                training, phase, (config.seed, number), make_pair, done
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
            [Validation(lambda function: measure_denoiser(function, held_out, config.noisy_only))],
            console,
            resume,
        )
        model.optimizer.finalize_variable_values(model.trainable_variables)
        save_model(model, config.output / "model.keras")
    return model


def measure_denoiser(function: Function, images: Sequence[np.ndarray], noisy_only: bool) -> dict[str, float]:
    """Return the PSNR of a denoiser at `VALIDATION_SIGMAS`, or its estimated gain where no image is clean, in dB."""

    def denoise(noisy: np.ndarray) -> np.ndarray:
        return function(noisy[None])[0]

    if not noisy_only:
        return {f"psnr_{sigma:g}": denoising_psnr(denoise, images, sigma) for sigma in VALIDATION_SIGMAS}
    sigmas = [estimate_sigma(image) for image in images]
    pairs = [(image, sigma) for image, sigma in zip(images, sigmas, strict=True) if sigma > 0]
    gains = [estimate_gain(image, denoise(image), sigma, denoise) for image, sigma in pairs]
    return {"gain": float(np.mean(gains)) if gains else 0.0}


def _compiled(model: keras.Model, config: DenoisingConfig) -> keras.Model:
    from dl_techniques.training.loop import averaged_adamw
    from dl_techniques.training.schedule import WarmupStableDecay

    rate = WarmupStableDecay(config.learning_rate, config.steps, config.cooldown, warmup=min(500, config.steps // 10))
    momentum = min(0.999, max(0.0, 1 - 5 / config.steps))  # the average looks back over a fifth of a short run
    model.compile(optimizer=averaged_adamw(rate, momentum), loss="mse" if config.noisy_only else "mae")
    model.optimizer.build(model.trainable_variables)
    return model


def load_images(folder: Path, channels: int, least: int) -> list[np.ndarray]:
    """Return the images of a folder, sorted by name, `(height, width, channels)`, float32.

    The largest value of an integer type becomes 1; floats are divided by the largest magnitude of all.

    Raises:
        FileError: The folder holds no image, or one that is broken, of other channels, not finite or smaller than
            `least` pixels.
    """
    images = []
    for path in find_images([folder]):
        pixels = read_image(path).pixels
        if pixels.shape[2] != channels:
            reason = f"has {pixels.shape[2]} channels, not {channels}."
            raise FileError(str(path), reason, "Convert it, or set --channels.")
        if not np.isfinite(pixels).all():
            raise FileError(str(path), "holds samples that are NaN or infinite.", "Repair it.")
        if min(pixels.shape[:2]) < least:
            remedy = "Remove it or choose a smaller patch."
            raise FileError(str(path), f"is smaller than a patch of {least} pixels.", remedy)
        images.append(pixels)
    return to_one_unit(images)


MakePair = Callable[[np.ndarray, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def choose_pairs(config: DenoisingConfig, images: Sequence[np.ndarray]) -> MakePair:
    """Return what makes input and target of a crop, given the number of its image."""
    if config.noisy_only:
        sigmas = [estimate_sigma(image) for image in images]
        return lambda crop, number, rng: recorrupt(crop, sigmas[number], rng)

    def corrupt(crop: np.ndarray, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sigma = rng.uniform(0.0, config.sigma) / 255
        if config.gain == 0:
            return add_gaussian_noise(crop, sigma, rng), crop
        return add_poisson_gaussian_noise(crop, rng.uniform(0.0, config.gain) / 255, sigma, rng), crop

    return corrupt


def training_patches(
    images: Sequence[np.ndarray], phase: Phase, seed: tuple[int, int], make_pair: MakePair, done: int = 0
) -> Iterator[tuple]:
    """Yield a phase's remaining batches of inputs and targets; batch n depends on the seed and n alone.

    Each is `(batch, patch, patch, channels)`, float32.

    Args:
        images: `(height, width, channels)`, float32.
        phase: Size and number of the patches.
        seed: Seed of the run and number of the phase.
        make_pair: Makes input and target of a crop.
        done: Steps of the phase that are done.
    """
    size = phase.patch

    def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        number = int(rng.integers(len(images)))
        top, left = (int(rng.integers(extent - size + 1)) for extent in images[number].shape[:2])
        crop = np.rot90(images[number][top : top + size, left : left + size], int(rng.integers(4)))
        return make_pair(crop[:, ::-1] if rng.integers(2) else crop, number, rng)

    return seeded_batches(pair, phase.last - phase.first, phase.batch_size, seed[0] + 1_000_003 * seed[1], done)
