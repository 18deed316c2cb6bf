"""Steps of the layers whose gradients are written by hand, where they serve: training on TensorFlow without a GPU."""

from __future__ import annotations

from types import ModuleType

import keras


def by_hand(x) -> ModuleType | None:
    """Return the module of the steps, `tensorflow_cpu`, if it is meant for a tensor, else `None`: take plain layers."""
    if keras.backend.backend() != "tensorflow":
        return None
    from dl_techniques.layers import tensorflow_cpu

    return tensorflow_cpu if tensorflow_cpu.serves(x) else None
