"""Progress of a training run: a bar with the time left on a terminal, a line per epoch in a pipe."""

from __future__ import annotations

import sys
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WARMUP = 2  # steps that are not timed
TIMED = 20  # steps, or as many as go into
SECONDS = 15.0
FEWEST = 5


def peak_memory() -> float | None:
    """Return the largest memory of this process so far, in GB; None on Windows, where it is not known."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


class TrainingProgress(keras.callbacks.Callback):
    """Show steps done, loss, elapsed and remaining time over the whole run, not epoch by epoch.

    After a few steps a line says what all of them will take. `done` are steps of an earlier part of the run.
    """

    def __init__(self, epochs: int, steps: int, console: Console, done: int = 0) -> None:
        super().__init__()
        self.epochs, self.steps, self.console, self.done = epochs, steps, console, done
        self._seen, self._start, self._last, self._told = 0, 0.0, 0.0, False
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

    def on_epoch_begin(self, epoch, logs=None) -> None:
        if self._seen:
            self._start += time.perf_counter() - self._last  # what came after the epoch before is not a step

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.progress.update(self.progress.task_ids[0], advance=1, loss=f"{float((logs or {})['loss']):.4f}")
        self._seen += 1
        if not self._told:
            self._tell_time()

    def _tell_time(self) -> None:
        now, timed = time.perf_counter(), self._seen - WARMUP
        self._last = now
        if timed == 0:
            self._start = now
        elif timed >= TIMED or (timed >= FEWEST and now - self._start >= SECONDS):
            step, memory = (now - self._start) / timed, peak_memory()
            minutes = (self.epochs * self.steps - self.done - self._seen) * step / 60
            self._told = True
            self.console.print(
                f"{step:.3g} s a step: about {minutes:.3g} minutes to go, without validation"
                + ("" if memory is None else f" · {memory:.1f} GB of memory so far")
            )

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
