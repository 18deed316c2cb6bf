"""SIGINT and SIGTERM in training: they are handled after the step in which they arrive."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras

from dl_techniques.training.distribution import agreed_signal


class Interruption(keras.callbacks.Callback):
    """Handle a signal after the batch or epoch in which it arrived.

    An exception that a signal handler raises in the middle of a step can be lost: Keras converts losses to numbers
    under a bare `except`, and JAX ignores exceptions during garbage collection.

    Args:
        before: Called between the end of the batch and the handler.
    """

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.before = before
        self.pending: tuple | None = None
        self.handlers: dict[int, Callable] = {}  # outside of training, by signal number

    def handle_pending(self) -> None:
        """Call the handler of the pending signal, if there is one."""
        if self.pending is not None:
            (handler, number), self.pending = self.pending, None
            handler(number, None)

    def on_train_batch_end(self, batch, logs=None) -> None:
        if batch + 1 == (self.params or {}).get("steps"):
            return  # the epoch ends first, with its validation and its line in the log
        if self.agreed():
            self.before()
            self.handle_pending()

    def on_epoch_end(self, epoch, logs=None) -> None:
        if self.agreed():
            self.handle_pending()

    def agreed(self) -> bool:
        """Return whether to handle a signal now, received here or in another process of the run.

        A signal that arrives here while the processes agree is handled the next time: this process alone must not stop.
        """
        number = agreed_signal(self.pending[1] if self.pending is not None else 0)
        if number and self.pending is None:
            self.pending = (self.handlers.get(number, signal.default_int_handler), number)
        return number != 0


@contextmanager
def interruptible(before: Callable[[], object] = lambda: None) -> Iterator[Interruption]:
    """Yield the callback that defers SIGINT and SIGTERM to the end of a batch, where their handlers are called.

    A second signal before that end is handled at once.

    Args:
        before: Called between the end of the batch and the handler, to save the state.
    """
    callback = Interruption(before)

    def defer(number, frame) -> None:
        if callback.pending is None:
            callback.pending = (callback.handlers[number], number)
        else:
            callback.handle_pending()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                callback.handlers[number] = handler
                signal.signal(number, defer)
    try:
        yield callback
    finally:
        for number, handler in callback.handlers.items():
            signal.signal(number, handler)
    if callback.agreed():
        callback.handle_pending()
