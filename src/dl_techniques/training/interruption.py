"""Signals that stop a run when they come, not when Keras happens to let them through."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras

from dl_techniques.training.distribution import agreed_signal


class Interruption(keras.callbacks.Callback):
    """Handle a signal after the batch or epoch in which it came.

    An exception that a signal handler raises in the middle of a step can be lost: Keras turns losses into numbers
    under a bare `except`, and JAX ignores what is raised while it collects garbage.
    """

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.before = before
        self.pending: tuple | None = None
        self.kept: dict[int, Callable] = {}  # handlers outside

    def handle_pending(self) -> None:
        """Do what the handler of a signal that came does, if one came."""
        if self.pending is not None:
            (handler, number), self.pending = self.pending, None
            handler(number, None)

    def on_train_batch_end(self, batch, logs=None) -> None:
        if batch + 1 == (self.params or {}).get("steps"):
            return  # after the last batch the epoch's own end comes first: its validation and its line in the log
        if self.agreed():
            self.before()
            self.handle_pending()

    def on_epoch_end(self, epoch, logs=None) -> None:
        if self.agreed():
            self.handle_pending()

    def agreed(self) -> bool:
        """Return whether a signal is to be handled now; one that came in another process of the run is taken up.

        One that comes here while the processes agree waits for the next time: alone, this process would leave the rest.
        """
        number = agreed_signal(self.pending[1] if self.pending is not None else 0)
        if number and self.pending is None:
            self.pending = (self.kept.get(number, signal.default_int_handler), number)  # may be ignored here alone
        return number != 0


@contextmanager
def interruptible(before: Callable[[], object] = lambda: None) -> Iterator[Interruption]:
    """Give a callback under which SIGINT and SIGTERM do in training what their handlers do outside.

    The first signal waits for the batch to end; a second one that comes before is handled at once.

    Args:
        before: Called between the end of the batch and the handler, to save what is to last.
    """
    callback = Interruption(before)
    kept = callback.kept

    def remember(number, frame) -> None:
        if callback.pending is None:
            callback.pending = (kept[number], number)
        else:
            callback.handle_pending()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                kept[number] = handler
                signal.signal(number, remember)
    try:
        yield callback
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if callback.agreed():
        callback.handle_pending()
