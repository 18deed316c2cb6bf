"""OpenVINO files, and how OpenVINO is imported."""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.engines.engine import Graph, compute_threads
from dl_techniques.engines.footprint import SIZED
from dl_techniques.engines.formats import Precision
from dl_techniques.errors import ArgumentError

COMPILED, COMPILED_BYTES = 8, 2**28  # sizes compiled for, at most, and the weights of all of them
# Kernels that the graph of any size keeps beyond those of its last size; by default thousands, megabytes for each size.
KERNELS = 0
ALONE = 2**14  # pixels of an image from which on OpenVINO computes those of a batch one by one


def load_openvino(path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of an OpenVINO file."""
    function = OpenVINOFunction(path, precision)
    return Graph(function.shape, function)


def write_openvino(model: Any, path: Path) -> None:
    """Write a Keras model as OpenVINO has it, without TensorFlow: Keras on OpenVINO makes the graph of any size.

    Keras' own export there sees images of one pixel and leaves that size in the graph. A graph with sums over the image
    takes one image at a time.

    Args:
        model: A functional model.
        path: Where to, an `.xml` file; its `.bin` comes beside it.
    """
    import keras

    openvino = import_openvino()
    opset13 = openvino.opset13
    batch = -1 if len(model.inputs) == 1 else 1
    inputs = [
        opset13.parameter([batch, *(-1 if size is None else size for size in x.shape[1:])], np.float32, name=x.name)
        for x in model.inputs
    ]
    tensors = [keras.ops.convert_to_tensor(given.output(0)) for given in inputs]
    outputs = keras.tree.flatten(model(tensors[0] if len(tensors) == 1 else tensors, training=False))
    for given, x in zip(inputs, model.inputs, strict=True):
        given.output(0).set_names({x.name})
    results = [opset13.result(output.output) for output in outputs]
    for name, result in zip(("output", "sums"), results, strict=False):
        result.output(0).set_names({name})
    graph = openvino.Model(results, inputs)
    openvino.save_model(graph, str(path), compress_to_fp16=False)


def import_openvino() -> Any:
    """Return OpenVINO, imported without its telemetry, which reports to a web service from a fork of this process."""
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[name] = None  # type: ignore[assignment]  # OpenVINO takes a stub of its own where there is none
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]


@functools.cache
def openvino_core() -> Any:
    """Return the process's one core of OpenVINO.

    Each core gives the thread a stack for signals and restores the last one when it goes, which may be that of a core
    that went before: the next Ctrl-C then ends the process with a segmentation fault.
    """
    return import_openvino().Core()


class OpenVINOFunction:
    """A model on OpenVINO: takes arrays, returns a list of arrays.

    Compiled for one size it takes half the time and half the memory that it takes compiled for any, and compiling takes
    some tenths of a second. So the first size is compiled for, every large one, and small ones that come again; what
    is small and comes once shares one that takes any.

    Images of a batch go through one by one, small ones excepted: their tensors stay in the processor's cache (up to a
    fifth less time) and take the memory of one image.

    Args:
        path: The `.xml` file, its `.bin` beside it.
        precision: What is computed in. `"bfloat16"` only where the processor has it: elsewhere it would gain nothing.

    Raises:
        ArgumentError: The processor has no bfloat16.
        RuntimeError: The file is broken.
    """

    def __init__(self, path: Path, precision: Precision = "float32") -> None:
        self._core = openvino_core()
        if precision == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            name = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            raise ArgumentError("precision", f"must be float32: {name} has no bfloat16", precision)
        # Without a hint OpenVINO takes bfloat16 where it is.
        self._hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
            "INFERENCE_NUM_THREADS": compute_threads(),
            # Processes that share the cores would all bind their threads to the first of them.
            "ENABLE_CPU_PINNING": compute_threads() == 0,
        }
        self._model = self._core.read_model(str(path))
        self._any_size = any(given.get_partial_shape().is_dynamic for given in self._model.inputs)
        ends = [end.get_partial_shape() for end in (*self._model.inputs, *self._model.outputs)]
        self._any_batch = all(shape.rank.is_static and len(shape) and shape[0].is_dynamic for shape in ends)
        weights = path.with_suffix(".bin")
        room = COMPILED_BYTES // max(weights.stat().st_size, 1) if weights.is_file() else COMPILED
        self._most = min(COMPILED, max(room, 1))
        self._compiled: dict[tuple, Any] = {}  # by the shapes of the inputs, used last at the end; () for any
        self._seen: set[tuple] = set()  # small ones that came once
        self._last: tuple[tuple, Any] | None = None  # the shapes of the inputs, and what keeps its memory for them
        if not self._any_size:
            self._compile(())

    @property
    def shape(self) -> list[int | None]:
        """Shape of the first input, `None` for sizes left open."""
        return [size.get_length() if size.is_static else None for size in self._model.inputs[0].get_partial_shape()]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        batch, *size = arrays[0].shape[:3]
        alone = self._any_batch and batch > 1 and math.prod(size) >= ALONE
        shapes = tuple((1, *array.shape[1:]) if alone else array.shape for array in arrays)
        if self._last and self._last[0] != shapes:
            self._last[1].release_memory()  # or each size would keep what it needed
        compiled = self._compiled_for(shapes, batch * math.prod(size))
        self._last = shapes, compiled
        if not alone:
            return _outputs(compiled, arrays)
        images = [_outputs(compiled, [array[i : i + 1] for array in arrays]) for i in range(batch)]
        return [np.concatenate(output) for output in zip(*images, strict=True)]

    def _compiled_for(self, shapes: tuple, pixels: int) -> Any:
        if not self._any_size:
            return self._compiled[()]
        if shapes in self._compiled:
            self._compiled[shapes] = self._compiled.pop(shapes)  # used last
            return self._compiled[shapes]
        if pixels < SIZED and shapes not in self._seen and self._compiled:
            self._seen.add(shapes)
            return self._compiled[()] if () in self._compiled else self._compile(())
        sized = [shapes for shapes in self._compiled if shapes]
        if len(sized) >= self._most:
            del self._compiled[sized[0]]
        return self._compile(shapes)

    def _compile(self, shapes: tuple) -> Any:
        model = self._model
        if shapes:
            model = model.clone()
            model.reshape({given: list(shape) for given, shape in zip(model.inputs, shapes, strict=True)})
        hints = self._hints if shapes else {**self._hints, "CPU_RUNTIME_CACHE_CAPACITY": KERNELS}
        self._compiled[shapes] = self._core.compile_model(model, "CPU", hints)
        return self._compiled[shapes]


def _outputs(compiled: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    results = compiled(list(arrays))
    return [np.array(results[index]) for index in range(len(compiled.outputs))]
