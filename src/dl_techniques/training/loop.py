"""Training in stages that can be stopped at any moment and gone on with as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from dl_techniques.errors import ConvUNextError
from dl_techniques.training.callbacks import EarlyStop, EpochLog, FiniteLoss, StateCheckpoint
from dl_techniques.training.checkpoint import (
    check_space,
    list_checkpoints,
    load_checkpoint,
    model_state,
    restore_model_state,
    step_of,
)
from dl_techniques.training.distribution import (
    as_training_data,
    broadcast_from_writer,
    faster_backend_hint,
    is_writer,
    mirrored_replicas,
    model_scope,
)
from dl_techniques.training.interruption import interruptible
from dl_techniques.training.progress import TrainingProgress
from dl_techniques.training.run_folder import LOG, read_log, trim_log

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Stage:
    """Steps `first` to `last` of a run, of one shape; `batches` gives those after so many of its steps."""

    first: int
    last: int
    batches: Callable[[int], Iterator]


class MirroredAdamW(keras.optimizers.AdamW):
    """AdamW under TensorFlow's `MirroredStrategy` that clips the gradient of the whole batch, as on one device.

    Each device gives its share of the gradient, and Keras adds them up after it has clipped each. Here every device
    gives the same share of their sum, clipped to that share of the norm.
    """

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        whole = replica.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        return super().apply([part / replica.num_replicas_in_sync for part in whole], trainable_variables)


def averaged_adamw(
    rate: keras.optimizers.schedules.LearningRateSchedule, momentum: float, accumulate: int = 1
) -> keras.optimizers.AdamW:
    """Return the optimizer of all runs: AdamW that keeps a moving average of the weights beside them.

    The average looks back over about 1 / (1 − momentum) steps; gradients of `accumulate` steps are averaged.
    """
    kind, mirrored = (MirroredAdamW, mirrored_replicas()) if mirrored_replicas() else (keras.optimizers.AdamW, 1)
    return kind(
        rate,
        weight_decay=1e-4,
        clipnorm=1.0 / mirrored,
        use_ema=True,
        ema_momentum=momentum,
        ema_overwrite_frequency=None,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        name="adam_w",
    )


def build_loss_trackers(model: keras.Model, channels: int) -> None:
    """Create the trackers of the losses of several outputs, for which TensorFlow would trace the first step twice.

    Args:
        model: Compiled, with a loss for each output.
        channels: Of its targets.
    """
    if keras.backend.backend() != "tensorflow" or mirrored_replicas():
        return  # `fit` creates them before it traces
    targets = [np.zeros((1, 1, 1, channels), "float32") for _ in model.outputs]
    model.compute_loss(y=targets, y_pred=[np.zeros((1, 1, 1, out.shape[-1]), "float32") for out in model.outputs])
    model.reset_metrics()


def fit_stages(
    build: Callable[[], keras.Model],
    stages: Sequence[Stage],
    steps_per_epoch: int,
    checkpoints: Path,
    callbacks: Sequence[keras.callbacks.Callback],
    console: Console,
    resume: bool,
    stop: EarlyStop | None = None,
) -> keras.Model:
    """Train, saving the complete state after every epoch and before a signal ends the run, and return the last model.

    A run that is stopped and resumed gives the same weights as one that was not: batches depend on their number alone,
    and each stage begins on a fresh model that takes up the state of the last, as a resumed run does.

    Args:
        build: Makes the model, compiled with an optimizer that is built.
        stages: The run from its first step to its last, each a whole number of epochs.
        steps_per_epoch: Steps between two checkpoints, each with a line in the log.
        checkpoints: Their folder, in the folder of the run.
        callbacks: Called after an epoch, before it is logged and saved.
        console: Where to print.
        resume: Go on from the newest intact checkpoint.
        stop: Ends the run before its last step (default: never).
    """
    run, last = checkpoints.parent, stages[-1].last
    # An epoch is logged right before it is saved.
    unbegun = is_writer() and resume and not list_checkpoints(checkpoints) and len(read_log(run)) <= 1
    if broadcast_from_writer(unbegun):
        console.print("stopped before its first checkpoint: starting from the first step")
        resume = False

    def begin(resume: bool) -> tuple[keras.Model, int]:
        with model_scope():
            model = build()
        return _restore(model, checkpoints, console) if resume else (model, 0)

    model, step = begin(resume)
    if is_writer():
        check_space(checkpoints, model)
        trim_log(run, step // steps_per_epoch)
    console.print(
        f"{model.count_params():,} parameters · Keras {keras.__version__} on {keras.backend.backend()} · "
        f"step {step} of {last}"
    )
    if not resume and (advice := faster_backend_hint()):
        console.print(advice)
    progress = TrainingProgress(last // steps_per_epoch, steps_per_epoch, console, done=step)
    save = StateCheckpoint(checkpoints)
    stop = stop or EarlyStop(lambda: False)
    try:
        with interruptible(save.save) as interruption:
            for stage in stages:
                if step >= stage.last:
                    continue
                if step == stage.first > 0:
                    model, step = begin(resume=True)
                while step < stage.last and not stop.due():
                    rest = steps_per_epoch - step % steps_per_epoch  # of an epoch that was interrupted
                    epoch = step // steps_per_epoch
                    whole = rest == steps_per_epoch
                    until = stage.last // steps_per_epoch if whole else epoch + 1
                    done = step - stage.first
                    with _refusals_kept(partial(stage.batches, done)) as make:
                        model.fit(
                            as_training_data(make),
                            steps_per_epoch=rest,
                            initial_epoch=epoch,
                            epochs=until,
                            shuffle=False,
                            callbacks=[
                                FiniteLoss(), *callbacks, EpochLog(run / LOG), save, progress, stop, interruption,
                            ],
                            verbose=0,
                        )  # fmt: skip
                    step = until * steps_per_epoch
    finally:
        progress.stop()
    return model


@contextmanager
def _refusals_kept(make: Callable[[], Iterator]) -> Iterator[Callable[[], Iterator]]:
    """Give what makes batches, and raise what their making refused; TensorFlow turns it into a text of its own."""
    refused: list[ConvUNextError] = []

    def observed() -> Iterator:
        try:
            yield from make()
        except ConvUNextError as error:
            refused.append(error)
            raise

    try:
        yield observed
    except Exception:
        if refused:
            raise refused[0] from None
        raise


def _restore(model: keras.Model, checkpoints: Path, console: Console) -> tuple[keras.Model, int]:
    step, state = 0, model_state(model)
    if is_writer():
        step, state, torn = load_checkpoint(checkpoints)
        for path in torn:
            lost = step_of(path) - step
            console.print(f"{path}: damaged, skipped; resuming from step {step}, {lost} steps are trained again")
    step, state = broadcast_from_writer((step, state))
    restore_model_state(model, state, checkpoints)
    return model, int(step)
