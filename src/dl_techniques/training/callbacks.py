"""What a run does beside its steps: save its state, measure its averaged weights on whole images."""

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
        state = model_state(self.model)
        if is_writer():
            save_checkpoint(self.folder, steps_done(self.model), state, log_digest(self.folder.parent))


class EpochLog(keras.callbacks.Callback):
    """Add a line to a CSV file after every epoch; unlike that of Keras' logger, the file is complete at any moment."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None) -> None:
        if not is_writer():
            return
        log_epoch(self.path, {"epoch": epoch, **{name: float(value) for name, value in (logs or {}).items()}})


class FiniteLoss(keras.callbacks.Callback):
    """Stop when the loss is no number any more; the last checkpoint is from before."""

    def on_train_batch_end(self, batch, logs=None) -> None:
        loss = float((logs or {})["loss"])
        if not np.isfinite(loss):
            step = steps_done(self.model)
            reason = f"became {loss} in step {step}."
            raise ConvUNextError("loss", reason, "Lower the learning rate; check the images with the largest values.")


class EarlyStop(keras.callbacks.Callback):
    """End a run after an epoch; what decides looks at the run's log, so that a resumed run decides alike.

    Args:
        due: Whether to end.
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
    """Give the model the moving average of its weights for a while."""
    trained = [gathered_value(weight) for weight in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    for weight in model.trainable_variables:  # not the optimizer's own arrays: JAX deletes those that predict used
        weight.assign(gathered_value(weight))
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, trained, strict=True):
            weight.assign(value)


class Validation(keras.callbacks.Callback):
    """After every epoch, measure the averaged weights, log the figures as `val_<name>`, and save the best.

    `watched` names the figure whose highest value is the best, which goes to `path` as an inference model that ends in
    `activation`; `look` is called with the averaged model as a function and the epoch; `make` makes that function,
    once.
    """

    def __init__(
        self,
        measure: Callable[[Function], Mapping[str, float]],
        watched: str | None = None,
        path: Path | None = None,
        best: float = -np.inf,
        activation: str = "linear",
        look: Callable[[Function, int], object] = lambda function, epoch: None,
        make: Callable[[Any], Function] = keras_function,
    ) -> None:
        super().__init__()
        self.measure, self.watched, self.path, self.best = measure, watched, path, best
        self.activation, self.look, self.make = activation, look, make
        self._function: Function | None = None
        self._copy: keras.Model | None = None
        self._made_of: keras.Model | None = None  # each stage of a run begins on a fresh model

    def on_epoch_end(self, epoch, logs=None) -> None:
        with averaged_weights(self.model):
            self._copy = local_copy(self.model, self._copy)
            if is_writer():
                with on_single_device():
                    self._validate(self._copy, epoch, logs if logs is not None else {})

    def _validate(self, model: keras.Model, epoch: int, logs: dict[str, Any]) -> None:
        if self._function is None or self._made_of is not model:
            self._function, self._made_of = self.make(model), model
        function = self._function
        figures = self.measure(function)
        self.look(function, epoch)
        logs.update({f"val_{name}": value for name, value in figures.items()})
        if self.watched is not None and self.path is not None:
            if figures[self.watched] > self.best or not self.path.exists():
                self.best = figures[self.watched]
                changes = {"final_activation": self.activation, "dtype": "float32"}
                save_model(create_inference_model_from_training_model(model, **changes), self.path)
