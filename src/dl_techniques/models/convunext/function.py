"""A Keras model as a function from array to array, for images of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import numpy as np

Function = Callable[[np.ndarray], np.ndarray]


def no_gradients() -> contextlib.AbstractContextManager:
    """Return a context in which PyTorch saves no tensors for gradients."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def keras_function(model: keras.Model) -> Function:
    """Return a function of `(batch, height, width, channels)`, float32; on JAX it is compiled once per image size.

    It returns the model's first output at inference, computed with the weights at the time of the call.
    """

    def call(batch: np.ndarray) -> np.ndarray:
        if keras.backend.backend() == "jax":
            outputs = model.predict(batch, batch_size=len(batch), verbose=0)
        else:
            with no_gradients():
                outputs = model(batch, training=False)
        first = outputs[0] if isinstance(outputs, list | tuple) else outputs
        return keras.ops.convert_to_numpy(first)

    return call
