"""Callbacks of a run: checkpoints, log, early stopping, validation of the averaged weights on full images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dl_techniques.errors import ConvUNextError
from dl_techniques.models.convunext.function import Function, keras_function
from dl_techniques.models.convunext.model import create_inference_model_from_training_model
from dl_techniques.training.checkpoint import model_state, save_checkpoint, save_model
from dl_techniques.training.distribution import (
    broadcast_from_writer,
    gathered_value,
    is_writer,
    local_copy,
    on_single_device,
)
from dl_techniques.training.run_folder import log_digest, log_epoch


class StateCheckpoint(keras.callbacks.Callback):
    """Save the state after every epoch, and on request.

    Args:
        folder: Folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None) -> None:
        self.save()

    def save(self) -> None:
        """Save the state after the last completed step."""
        if keras.backend.backend() == "jax":  # where the model's variables are empty within an epoch
            self.model.jax_state_sync()
        state = model_state(self.model)
        if is_writer():
            save_checkpoint(self.folder, steps_done(self.model), state, log_digest(self.folder.parent))


class EpochLog(keras.callbacks.Callback):
    """Append a line to a CSV file after every epoch; unlike that of Keras' `CSVLogger`, the file is always complete."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None) -> None:
        if not is_writer():
            return
        log_epoch(self.path, {"epoch": epoch, **{name: float(value) for name, value in (logs or {}).items()}})


class FiniteLoss(keras.callbacks.Callback):
    """Raise an error when the loss is not finite; the last checkpoint is from before."""

    def on_train_batch_end(self, batch, logs=None) -> None:
        loss = float((logs or {})["loss"])
        if not np.isfinite(loss):
            step = steps_done(self.model)
            reason = f"became {loss} in step {step}."
            raise ConvUNextError("loss", reason, "Lower the learning rate; check the images with the largest values.")


class EarlyStop(keras.callbacks.Callback):
    """End a run after an epoch.

    Args:
        due: Whether to end; it depends on the run's log alone, so that a resumed run ends at the same epoch.
    """

    def __init__(self, due: Callable[[], bool]) -> None:
        super().__init__()
        self.due = due

    def on_epoch_end(self, epoch, logs=None) -> None:
        if broadcast_from_writer(is_writer() and self.due()):
            self.model.stop_training = True


def steps_done(model: keras.Model) -> int:
    """Return the number of batches that a model has been trained on."""
    count = next(variable for variable in model.optimizer.variables if variable.name == "iteration")
    return int(keras.ops.convert_to_numpy(count))  # `optimizer.iterations` counts updates of the weights


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Replace the weights of the model by their moving average in this context."""
    trained = [gathered_value(weight) for weight in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    for weight in model.trainable_variables:  # copies: JAX deletes the arrays that `predict` used
        weight.assign(gathered_value(weight))
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, trained, strict=True):
            weight.assign(value)


class Validation(keras.callbacks.Callback):
    """Validate the averaged weights after every epoch, log the metrics and save the best model.

    Args:
        measure: Returns metrics by name, given the model as a function; they are logged as `val_<name>`.
        monitor: Name of the metric whose highest value is the best; default: no model is saved.
        path: `.keras` file of the best inference model.
        best: Metric of the model that is in the file.
        activation: Final activation of the inference model.
        preview: Called with the averaged model as a function and the epoch.
        make_function: Turns the model into that function, once per model; it uses the weights at the time of a call.
    """

    def __init__(
        self,
        measure: Callable[[Function], Mapping[str, float]],
        monitor: str | None = None,
        path: Path | None = None,
        best: float = -np.inf,
        activation: str = "linear",
        preview: Callable[[Function, int], object] = lambda function, epoch: None,
        make_function: Callable[[Any], Function] = keras_function,
    ) -> None:
        super().__init__()
        self.measure, self.monitor, self.path, self.best = measure, monitor, path, best
        self.activation, self.preview, self.make_function = activation, preview, make_function
        self._function: Function | None = None
        self._copy: keras.Model | None = None
        self._function_model: keras.Model | None = None  # every stage of a run has a model of its own

    def on_epoch_end(self, epoch, logs=None) -> None:
        with averaged_weights(self.model):
            self._copy = local_copy(self.model, self._copy)
            if is_writer():
                with on_single_device():
                    self._validate(self._copy, epoch, logs if logs is not None else {})

    def _validate(self, model: keras.Model, epoch: int, logs: dict[str, Any]) -> None:
        if self._function is None or self._function_model is not model:
            self._function, self._function_model = self.make_function(model), model
        function = self._function
        metrics = self.measure(function)
        self.preview(function, epoch)
        logs.update({f"val_{name}": value for name, value in metrics.items()})
        if self.monitor is not None and self.path is not None:
            if metrics[self.monitor] > self.best or not self.path.exists():
                self.best = metrics[self.monitor]
                changes = {"final_activation": self.activation, "dtype": "float32"}
                save_model(create_inference_model_from_training_model(model, **changes), self.path)
