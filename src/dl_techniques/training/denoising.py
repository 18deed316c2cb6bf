"""Training of blind denoisers: clean images in, a model that removes Gaussian noise of any level out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.data.files import find_images, read_pixels, unit_range, write_file
from dl_techniques.data.noise import add_gaussian_noise
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

    After every epoch the whole state is saved; a run that is stopped at any moment and resumed gives the same weights
    as one that was not.

    Args:
        config: Settings; those of the first start when resuming.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.
        build: Makes the untrained model, the same at every call.

    Raises:
        FileError: An image or checkpoint cannot be read, or the folder cannot be written or holds a run already.
    """
    import keras

    from dl_techniques.training.checkpoint import save_model
    from dl_techniques.training.interruption import interruptible
    from dl_techniques.training.progress import TrainingProgress

    images = load_clean_images(config.images, config.channels, max(config.patch, config.final_patch))
    if len(images) <= config.held_out:
        count = len(images)
        reason = f"holds {count} images; {config.held_out} are held out and none is left to train on."
        raise FileError(str(config.images), reason, "Add images or hold out fewer.")
    checkpoints = _open_run(config, resume)
    keras.utils.set_random_seed(config.seed)
    held_out, training = images[: config.held_out], images[config.held_out :]
    model, step = _start(config, build, checkpoints if resume else None, console)
    console.print(
        f"{len(training)} images to train on, {len(held_out)} held out · {model.count_params():,} parameters · "
        f"Keras {keras.__version__} on {keras.backend.backend()} · step {step} of {config.steps}"
    )
    per_epoch = config.steps_per_epoch
    progress = TrainingProgress(config.steps // per_epoch, per_epoch, console, done=step)
    try:
        with interruptible() as interruption:
            for number, phase in enumerate(config.phases):
                if step >= phase.last:
                    continue
                if step == phase.first > 0:  # as a resumed run does: the same graph, the same rounding
                    model, step = _start(config, build, checkpoints, console)
                batches = noisy_patches(training, phase, (config.seed, number), config.sigma, step - phase.first)
                callbacks = [*_callbacks(config, held_out, checkpoints, append=step > 0), progress, interruption]
                model.fit(
                    batches,
                    steps_per_epoch=per_epoch,
                    initial_epoch=step // per_epoch,
                    epochs=phase.last // per_epoch,
                    shuffle=False,
                    callbacks=callbacks,
                    verbose=0,
                )
                step = phase.last
    finally:
        progress.stop()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    save_model(model, config.output / "model.keras")
    return model


def _start(
    config: DenoisingConfig,
    build: Callable[[DenoisingConfig], keras.Model],
    checkpoints: Path | None,
    console: Console,
) -> tuple[keras.Model, int]:
    """Return the compiled model and the steps done: none, or those of the newest whole checkpoint."""
    import keras

    from dl_techniques.training.checkpoint import load_checkpoint, restore_model_state
    from dl_techniques.training.schedule import WarmupStableDecay

    model = build(config)
    model.compile(
        optimizer=keras.optimizers.AdamW(
            WarmupStableDecay(config.learning_rate, config.steps, config.cooldown),
            weight_decay=1e-4,
            clipnorm=1.0,
            use_ema=True,
            ema_momentum=0.999,
            ema_overwrite_frequency=None,
            name="adam_w",
        ),
        loss="mae",
    )
    model.optimizer.build(model.trainable_variables)
    if checkpoints is None:
        return model, 0
    step, state, torn = load_checkpoint(checkpoints)
    for path in torn:
        console.print(f"{path}: damaged, passed over")
    restore_model_state(model, state, checkpoints)
    return model, step


def _callbacks(config: DenoisingConfig, held_out: list[np.ndarray], checkpoints: Path, append: bool) -> list:
    import keras

    from dl_techniques.training.callbacks import DenoisingValidation, StateCheckpoint

    return [
        DenoisingValidation(held_out, VALIDATION_SIGMAS),
        keras.callbacks.CSVLogger(str(config.output / "log.csv"), append=append),
        StateCheckpoint(checkpoints),
    ]


def _open_run(config: DenoisingConfig, resume: bool) -> Path:
    checkpoints = config.output / "checkpoints"
    if not resume and config.output.exists():
        raise FileError(str(config.output), "exists already.", "Name a new folder, or resume the run in it.")
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if not resume:
            settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}
            write_file(config.output / "config.json", json.dumps(settings, indent=2).encode())
    except OSError as error:
        raise FileError(
            str(config.output), f"cannot be written: {error.strerror}.", "Choose another folder."
        ) from error
    return checkpoints


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
    import grain.python as grain

    size = phase.patch

    class Patch(grain.RandomMapTransform):
        def random_map(self, element: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            image = images[int(rng.integers(len(images)))]
            top, left = (int(rng.integers(extent - size + 1)) for extent in image.shape[:2])
            patch = np.rot90(image[top : top + size, left : left + size], int(rng.integers(4)))
            patch = patch[:, ::-1] if rng.integers(2) else patch
            clean = unit_range(patch)
            return add_gaussian_noise(clean, rng.uniform(0.0, sigma) / 255, rng), clean

    count = (phase.last - phase.first) * phase.batch_size
    batches = grain.MapDataset.range(count).seed(seed[0] + 1_000_003 * seed[1]).random_map(Patch())
    batches = batches.batch(phase.batch_size)[done:]
    yield from batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
