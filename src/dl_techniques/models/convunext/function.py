"""A Keras model as a function from array to array, as fast as each backend has it without being told sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import numpy as np

Function = Callable[[np.ndarray], np.ndarray]


def no_gradients() -> contextlib.AbstractContextManager:
    """Return a context in which PyTorch does not keep every tensor for gradients that nobody wants."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def keras_function(model: keras.Model) -> Function:
    """Return a function of `(batch, height, width, channels)`, float32; on JAX compiled whole, once per image size.

    It gives the model's first output at inference, with the weights that the model has when it is called.
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
