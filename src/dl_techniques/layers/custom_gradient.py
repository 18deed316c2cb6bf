"""Selects the operations with custom gradients: for training on TensorFlow without a GPU."""

from __future__ import annotations

from types import ModuleType

import keras


def custom_gradient_ops(x) -> ModuleType | None:
    """Return the module `tensorflow_cpu` if it supports training on this tensor, else `None`: use the plain layers."""
    if keras.backend.backend() != "tensorflow":
        return None
    from dl_techniques.layers import tensorflow_cpu

    return tensorflow_cpu if tensorflow_cpu.is_supported(x) else None
