"""Progress of a training run: a bar with the time left on a terminal, a line per epoch in a pipe."""

from __future__ import annotations

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress(keras.callbacks.Callback):
    """Show steps done, loss, elapsed and remaining time over the whole run, not epoch by epoch.

    Args:
        epochs: Epochs of the run.
        steps: Steps of an epoch.
        console: Where to print.
        done: Steps that an earlier part of the run has done.
    """

    def __init__(self, epochs: int, steps: int, console: Console, done: int = 0) -> None:
        super().__init__()
        self.epochs, self.steps, self.console, self.done = epochs, steps, console, done
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · loss {task.fields[loss]} ·"),
            TimeElapsedColumn(),
            TextColumn("elapsed ·"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, logs=None) -> None:
        self.progress.start()
        if not self.progress.tasks:  # a run may call `fit` more than once
            self.progress.add_task("training", total=self.epochs * self.steps, completed=self.done, loss="…")

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.progress.update(self.progress.task_ids[0], advance=1, loss=f"{float((logs or {})['loss']):.4f}")

    def on_epoch_end(self, epoch, logs=None) -> None:
        if not self.console.is_terminal:
            told = {name: value for name, value in (logs or {}).items() if name == "loss" or name.startswith("val_")}
            numbers = "  ".join(f"{name} {float(value):.4f}" for name, value in told.items())
            self.console.print(f"epoch {epoch + 1}/{self.epochs}  {numbers}")

    def on_train_end(self, logs=None) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        self.progress.stop()
