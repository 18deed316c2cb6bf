"""Signals that stop a run when they come, not when Keras happens to let them through."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import keras


class Interruption(keras.callbacks.Callback):
    """Handle a signal anew after the batch in which it came.

    Keras turns losses into numbers under a bare `except`, and on JAX most of a step is spent there: an exception that
    a signal handler raises in that moment is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pending: tuple | None = None

    def on_train_batch_end(self, batch, logs=None) -> None:
        if self.pending is not None:
            handler, number, frame = self.pending
            handler(number, frame)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Give a callback under which SIGINT and SIGTERM do in training what their handlers do outside."""
    callback = Interruption()
    kept = {}

    def remember(number, frame) -> None:
        callback.pending = (kept[number], number, None)
        kept[number](number, frame)

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
