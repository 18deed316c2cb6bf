"""Progress of a training run: a bar with the time left on a terminal, a line per epoch in a pipe."""

from __future__ import annotations

import sys
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WARMUP = 2  # steps that are not timed
TIMED = 20  # steps that are timed, fewer if they take more than
SECONDS = 15.0
FEWEST = 5  # but at least so many


def peak_memory() -> float | None:
    """Return the peak memory of this process so far, in GB; `None` on Windows, where it is unknown."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


class TrainingProgress(keras.callbacks.Callback):
    """Show steps done, loss, elapsed and remaining time of the complete run, not of an epoch.

    After a few steps one line estimates the duration of the run. `done` steps were done before this process started.
    """

    def __init__(self, epochs: int, steps: int, console: Console, done: int = 0) -> None:
        super().__init__()
        self.epochs, self.steps, self.console, self.done = epochs, steps, console, done
        self._steps_here, self._start, self._last, self._estimated = 0, 0.0, 0.0, False
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
        if self._steps_here:
            self._start += time.perf_counter() - self._last  # validation between epochs is not part of a step

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.progress.update(self.progress.task_ids[0], advance=1, loss=f"{float((logs or {})['loss']):.4f}")
        self._steps_here += 1
        if not self._estimated:
            self._print_estimate()

    def _print_estimate(self) -> None:
        now, timed = time.perf_counter(), self._steps_here - WARMUP
        self._last = now
        if timed == 0:
            self._start = now
        elif timed >= TIMED or (timed >= FEWEST and now - self._start >= SECONDS):
            step, memory = (now - self._start) / timed, peak_memory()
            minutes = (self.epochs * self.steps - self.done - self._steps_here) * step / 60
            self._estimated = True
            self.console.print(
                f"{step:.3g} s a step: about {minutes:.3g} minutes to go, without validation"
                + ("" if memory is None else f" · {memory:.1f} GB of memory so far")
            )

    def on_epoch_end(self, epoch, logs=None) -> None:
        if not self.console.is_terminal:
            shown = {name: value for name, value in (logs or {}).items() if name == "loss" or name.startswith("val_")}
            numbers = "  ".join(f"{name} {float(value):.4f}" for name, value in shown.items())
            self.console.print(f"epoch {epoch + 1}/{self.epochs}  {numbers}")

    def on_train_end(self, logs=None) -> None:
        self.stop()

    def stop(self) -> None:
        """Restore the terminal; may be called twice."""
        self.progress.stop()
