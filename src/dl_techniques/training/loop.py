"""The training loop: a run in stages that can be stopped and resumed with bit-identical results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.training.callbacks import EarlyStop, EpochLog, FiniteLoss, StateCheckpoint, steps_done
from dl_techniques.training.checkpoint import (
    check_space,
    list_checkpoints,
    load_checkpoint,
    logged_digest,
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
    """Steps `first` to `last` of a run, of one batch shape; `batches` yields the rest after so many of its steps."""

    first: int
    last: int
    batches: Callable[[int], Iterator]


class MirroredAdamW(keras.optimizers.AdamW):
    """AdamW for TensorFlow's `MirroredStrategy` that clips the gradient of the full batch, as on one device.

    Keras clips the gradient of each device and then sums over devices. Here the gradients are summed first; each device
    passes on the sum divided by the number of devices, clipped to the norm divided by that number.
    """

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        return super().apply([gradient / replica.num_replicas_in_sync for gradient in total], trainable_variables)


def averaged_adamw(
    rate: keras.optimizers.schedules.LearningRateSchedule, momentum: float, accumulate: int = 1
) -> keras.optimizers.AdamW:
    """Return the optimizer of all runs: AdamW with an exponential moving average of the weights.

    The average spans about 1 / (1 − momentum) steps; the gradients of `accumulate` steps are averaged for each update.
    """
    replicas = mirrored_replicas()
    optimizer = MirroredAdamW if replicas else keras.optimizers.AdamW
    return optimizer(
        rate,
        weight_decay=1e-4,
        clipnorm=1.0 / max(replicas, 1),
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
    """Train and return the model of the last step; save the state after every epoch and before a signal ends the run.

    A run that is stopped and resumed gives the same weights as an uninterrupted one.

    Args:
        build: Builds the compiled model; its optimizer is built, too.
        stages: Stages from the first step to the last, each an integer number of epochs.
        steps_per_epoch: Steps between two checkpoints, each with a line in the log.
        checkpoints: Folder of the checkpoints, inside the run's folder.
        callbacks: Callbacks that run after an epoch before it is logged and saved.
        console: Console for messages.
        resume: Continue from the newest undamaged checkpoint.
        stop: Ends the run early; default: never.
    """
    run, last = checkpoints.parent, stages[-1].last
    # An epoch is logged before it is saved, so a run that was killed in between has one line and no checkpoint.
    no_checkpoint_yet = is_writer() and resume and not list_checkpoints(checkpoints) and len(read_log(run)) <= 1
    if broadcast_from_writer(no_checkpoint_yet):
        console.print("stopped before its first checkpoint: starting from the first step")
        resume = False

    def begin(resume: bool) -> tuple[keras.Model, int]:
        with model_scope():
            model = build()
        return _restore(model, checkpoints, steps_per_epoch, console) if resume else (model, 0)

    model, step = begin(resume)
    if is_writer():
        check_space(checkpoints, model)
        if not resume:
            trim_log(run, 0)
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
                    # Every stage starts on a fresh model and from a checkpoint, because a run that is resumed between
                    # two stages does the same: only so are the results of both identical to the bit.
                    model, step = begin(resume=True)
                while step < stage.last and not stop.due():
                    remaining = steps_per_epoch - step % steps_per_epoch  # less than an epoch after an interruption
                    epoch = step // steps_per_epoch
                    epochs = stage.last // steps_per_epoch if remaining == steps_per_epoch else epoch + 1
                    done = step - stage.first
                    with _original_errors(partial(stage.batches, done)) as make_batches:
                        model.fit(
                            as_training_data(make_batches),
                            steps_per_epoch=remaining,
                            initial_epoch=epoch,
                            epochs=epochs,
                            shuffle=False,
                            callbacks=[
                                FiniteLoss(), *callbacks, EpochLog(run / LOG), save, progress, stop, interruption,
                            ],
                            verbose=0,
                        )  # fmt: skip
                    step = epochs * steps_per_epoch
    finally:
        progress.stop()
    return model


@contextmanager
def _original_errors(make_batches: Callable[[], Iterator]) -> Iterator[Callable[[], Iterator]]:
    """Raise our errors from making batches as they are: TensorFlow would wrap them in an error of its own."""
    errors: list[ConvUNextError] = []

    def observed() -> Iterator:
        try:
            yield from make_batches()
        except ConvUNextError as error:
            errors.append(error)
            raise

    try:
        yield observed
    except Exception:
        if errors:
            raise errors[0] from None
        raise


def _restore(model: keras.Model, checkpoints: Path, steps_per_epoch: int, console: Console) -> tuple[keras.Model, int]:
    step, state = 0, model_state(model)
    if is_writer():
        step, state, damaged = load_checkpoint(checkpoints)
        for path in damaged:
            lost = step_of(path) - step
            console.print(f"{path}: damaged, skipped; resuming from step {step}, {lost} steps are trained again")
        found = next(path for path in list_checkpoints(checkpoints) if path not in damaged)
        trim_log(checkpoints.parent, step // steps_per_epoch, logged_digest(found))
    step, state = broadcast_from_writer((step, state))
    restore_model_state(model, state, checkpoints)
    if steps_done(model) != step:
        reason = f"holds a state after step {steps_done(model)} under the name of step {step}."
        raise FileError(str(checkpoints), reason, "Restore the checkpoint from a backup.")
    return model, int(step)
