"""OpenVINO and ONNX Runtime: a model in a file as a function from arrays to arrays."""

from __future__ import annotations

import importlib
import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.engines.footprint import SIZED
from dl_techniques.engines.formats import Precision
from dl_techniques.errors import ArgumentError

Shape = list[int | None]
ArraysFunction = Callable[..., list[np.ndarray]]
COMPILED, COMPILED_BYTES = 8, 2**28  # sizes compiled for, at most, and the weights of all of them
ALONE = 2**14  # pixels of an image from which on OpenVINO computes those of a batch one by one
# A string `location` in the first field of a message, in any encoding: where a tensor of an ONNX file lies elsewhere.
ELSEWHERE = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
SAMPLE = (1, 128, 160)  # image on which the deviation of half precision is measured


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


def threads() -> int:
    """Return how many threads a runtime may compute with: OMP_NUM_THREADS, or 0, all cores, if not set."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() else 0


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
        self._core = import_openvino().Core()
        if precision == "bfloat16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            name = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            raise ArgumentError("precision", f"must be float32: {name} has no bfloat16", precision)
        # Without a hint OpenVINO takes bfloat16 where it is.
        self._hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
            "INFERENCE_NUM_THREADS": threads(),
            # Processes that share the cores would all bind their threads to the first of them.
            "ENABLE_CPU_PINNING": threads() == 0,
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
    def shape(self) -> Shape:
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
        sized = [kept for kept in self._compiled if kept]
        if len(sized) >= self._most:
            del self._compiled[sized[0]]
        return self._compile(shapes)

    def _compile(self, shapes: tuple) -> Any:
        model = self._model
        if shapes:
            model = model.clone()
            model.reshape({given: list(shape) for given, shape in zip(model.inputs, shapes, strict=True)})
        self._compiled[shapes] = self._core.compile_model(model, "CPU", self._hints)
        return self._compiled[shapes]


def _outputs(compiled: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    results = compiled(list(arrays))
    return [np.array(results[index]) for index in range(len(compiled.outputs))]


class ONNXFunction:
    """A model on ONNX Runtime: takes arrays, returns a list of arrays.

    Args:
        path: The `.onnx` file.

    Raises:
        ValueError: The file is broken, or would have other files read.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        if _reads_others(path):
            raise ValueError("it keeps weights in other files, which are not read")
        try:
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = threads()
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no class in common
            raise ValueError(error) from error
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def shape(self) -> Shape:
        """Shape of the first input, `None` for sizes left open."""
        return [size if isinstance(size, int) else None for size in self._session.get_inputs()[0].shape]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        results = self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True)))
        return [np.asarray(result) for result in results]


def _reads_others(path: Path) -> bool:
    """Return whether an ONNX file names others that hold its weights."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return ELSEWHERE.search(content) is not None


def deviation(path: Path, precision: Precision) -> float:
    """Return how far a precision is from float32 on noise: the largest difference by the range of the output.

    Args:
        path: The `.xml` file.
        precision: The precision.
    """
    exact, other = OpenVINOFunction(path), OpenVINOFunction(path, precision)
    channels = exact.shape[3]
    x = np.random.default_rng(0).uniform(size=(*SAMPLE, channels or 1)).astype("float32")
    (y, *_), (z, *_) = exact(x), other(x)
    return float(np.abs(z - y).max() / (np.ptp(y) or 1.0))
