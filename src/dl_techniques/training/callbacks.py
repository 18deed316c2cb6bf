"""What a run does beside its steps: save its state, measure its averaged weights on whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from dl_techniques.data.files import unit_range
from dl_techniques.metrics import denoising_psnr
from dl_techniques.training.checkpoint import model_state, save_checkpoint


class StateCheckpoint(keras.callbacks.Callback):
    """Save the whole state after every epoch.

    Args:
        folder: Where checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None) -> None:
        save_checkpoint(
            self.folder, int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)), model_state(self.model)
        )


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Give the model the moving average of its weights for a while."""
    trained = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, trained, strict=True):
            weight.assign(value)


class DenoisingValidation(keras.callbacks.Callback):
    """After every epoch, log the mean PSNR of the averaged weights on noisy images as `val_psnr_<sigma>`.

    Args:
        images: Clean images, `(height, width, channels)`, of an integer type.
        sigmas: Standard deviations, in units of 1/255.
    """

    def __init__(self, images: Sequence[np.ndarray], sigmas: Sequence[float]) -> None:
        super().__init__()
        self.images = [unit_range(image) for image in images]
        self.sigmas = sigmas

    def on_epoch_end(self, epoch, logs=None) -> None:
        def denoise(noisy: np.ndarray) -> np.ndarray:
            return keras.ops.convert_to_numpy(self.model(noisy[None], training=False))[0]

        with averaged_weights(self.model):
            for sigma in self.sigmas:
                value = denoising_psnr(denoise, self.images, sigma)
                (logs if logs is not None else {})[f"val_psnr_{sigma:g}"] = value
