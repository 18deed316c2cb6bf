"""What a run does beside its steps: save its state, measure its averaged weights on whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from dl_techniques.data.files import write_file
from dl_techniques.data.noise import estimate_sigma
from dl_techniques.errors import ConvUNextError
from dl_techniques.metrics import denoising_psnr, estimate_gain
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.models.convunext.model import create_inference_model_from_training_model
from dl_techniques.training.checkpoint import model_state, save_checkpoint, save_model
from dl_techniques.training.evaluation import evaluate

if TYPE_CHECKING:
    from dl_techniques.data.masks import Classes
    from dl_techniques.training.segmentation_data import SegmentationSample


class StateCheckpoint(keras.callbacks.Callback):
    """Save the whole state after every epoch, and when asked to.

    Args:
        folder: Where checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.save()

    def save(self) -> None:
        """Save the state after the step that ended last."""
        if keras.backend.backend() == "jax":  # within an epoch the model's variables are empty there
            self.model.jax_state_sync()
        save_checkpoint(self.folder, steps_done(self.model), model_state(self.model))


class EpochLog(keras.callbacks.Callback):
    """Add a line to a CSV file after every epoch; the file is whole at any moment.

    Keras' own logger keeps its file open when training is stopped by an error.

    Args:
        path: The file; lines that are in it stay.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None) -> None:
        row = {"epoch": epoch, **{name: float(value) for name, value in (logs or {}).items()}}
        known = self.path.read_text(encoding="utf-8") if self.path.exists() else ",".join(row) + "\n"
        write_file(self.path, (known + ",".join(map(str, row.values())) + "\n").encode())


class FiniteLoss(keras.callbacks.Callback):
    """Stop when the loss is no number any more; the last checkpoint is from before."""

    def on_train_batch_end(self, batch, logs=None) -> None:
        loss = float((logs or {})["loss"])
        if not np.isfinite(loss):
            step = steps_done(self.model)
            reason = f"became {loss} in step {step}."
            raise ConvUNextError("loss", reason, "Lower the learning rate; check the images with the largest values.")


def steps_done(model: keras.Model) -> int:
    """Return the number of steps that a model has been trained for."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Give the model the moving average of its weights for a while."""
    trained = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    for weight in model.trainable_variables:  # not the optimizer's own arrays: JAX deletes those that predict used
        weight.assign(np.array(keras.ops.convert_to_numpy(weight)))
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, trained, strict=True):
            weight.assign(value)


class SegmentationValidation(keras.callbacks.Callback):
    """After every epoch, log Dice and IoU of the averaged weights on whole images, and keep the best weights.

    Args:
        samples: Images and their classes.
        classes: What the model's channels mean.
        path: Where the best inference model goes, a `.keras` file.
        best: Mean Dice of the one that is there.
    """

    def __init__(self, samples: Sequence[SegmentationSample], classes: Classes, path: Path, best: float) -> None:
        super().__init__()
        self.samples, self.classes, self.path, self.best = samples, classes, path, best

    def on_epoch_end(self, epoch, logs=None) -> None:
        function, activation = keras_function(self.model), keras.activations.get(self.classes.activation)

        def probabilities(batch: np.ndarray) -> np.ndarray:
            return keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(function(batch))))

        with averaged_weights(self.model):
            result = evaluate(probabilities, self.samples, self.classes).confusion
            (logs if logs is not None else {}).update(val_dice=result.mean_dice, val_iou=result.mean_iou)
            if result.mean_dice > self.best or not self.path.exists():
                self.best = result.mean_dice
                inference_model = create_inference_model_from_training_model(
                    self.model, final_activation=self.classes.activation
                )
                save_model(inference_model, self.path)


class DenoisingValidation(keras.callbacks.Callback):
    """After every epoch, log the mean PSNR of the averaged weights on noisy images as `val_psnr_<sigma>`.

    Args:
        images: Clean images, `(height, width, channels)`, float32, in [0, 1].
        sigmas: Standard deviations, in units of 1/255.
    """

    def __init__(self, images: Sequence[np.ndarray], sigmas: Sequence[float]) -> None:
        super().__init__()
        self.images, self.sigmas = images, sigmas

    def on_epoch_end(self, epoch, logs=None) -> None:
        function = keras_function(self.model)
        with averaged_weights(self.model):
            for sigma in self.sigmas:
                value = denoising_psnr(lambda noisy: function(noisy[None])[0], self.images, sigma)
                (logs if logs is not None else {})[f"val_psnr_{sigma:g}"] = value


class GainValidation(keras.callbacks.Callback):
    """After every epoch, log the averaged weights' mean gain in PSNR as `val_gain`, estimated without clean images.

    Args:
        images: Noisy images, `(height, width, channels)`, float32.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.images = [(image, estimate_sigma(image)) for image in images]

    def on_epoch_end(self, epoch, logs=None) -> None:
        function = keras_function(self.model)

        def denoise(noisy: np.ndarray) -> np.ndarray:
            return function(noisy[None])[0]

        with averaged_weights(self.model):
            gains = [estimate_gain(image, denoise(image), sigma, denoise) for image, sigma in self.images if sigma > 0]
        (logs if logs is not None else {})["val_gain"] = float(np.mean(gains)) if gains else 0.0
