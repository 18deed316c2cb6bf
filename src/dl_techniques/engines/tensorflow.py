"""What TensorFlow runs, SavedModel folders and LiteRT files, and what Keras on TensorFlow writes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.engines.engine import Graph
from dl_techniques.engines.formats import Precision


def load_saved_model(path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of a SavedModel folder."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serve"]
    (name, spec), *_ = serve.structured_input_signature[1].items()
    return Graph(
        spec.shape.as_list(), lambda x: [output.numpy() for output in serve(**{name: tf.constant(x)}).values()]
    )


def load_litert(path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of a LiteRT file."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it will move to a package of its own
        interpreter = tf.lite.Interpreter(str(path))
    forward = interpreter.get_signature_runner()  # fits its tensors to the size of each input
    ((name, details),) = forward.get_input_details().items()

    def call(x: np.ndarray) -> list[np.ndarray]:
        return [np.array(output) for _, output in sorted(forward(**{name: x}).items())]

    return Graph([int(size) if size > 0 else None for size in details["shape_signature"]], call)


def write_saved_model(model: Any, path: Path) -> None:
    """Write a functional Keras model as a SavedModel folder; needs Keras on TensorFlow."""
    _export(model, path, format="tf_saved_model")


def write_onnx(model: Any, path: Path) -> None:
    """Write a functional Keras model as an ONNX file; needs Keras on TensorFlow."""
    _export(model, path, format="onnx")


def write_litert(model: Any, path: Path) -> None:
    """Write a functional Keras model as a LiteRT file; needs Keras on TensorFlow."""
    import tensorflow as tf

    # Nothing beyond LiteRT's own operations: its runtime alone, without TensorFlow's, must do.
    _export(model, path, format="litert", target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]})


def _export(model: Any, path: Path, **options: Any) -> None:
    """Call `Model.export`, the inputs named and of their own types."""
    import keras

    specs = [keras.InputSpec(shape=x.shape, dtype="float32", name=x.name) for x in model.inputs]
    signature: list[Any] = specs if len(specs) == 1 else [specs]  # the model is called with one argument, a list
    with warnings.catch_warnings():
        # Keras mends tf2onnx under NumPy 2 and is warned for looking.
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        model.export(str(path), verbose=False, input_signature=signature, **options)
