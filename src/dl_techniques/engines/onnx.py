"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np

from dl_techniques.engines.engine import Graph, compute_threads
from dl_techniques.engines.formats import Precision

# A string `location` in the first field of a message, in any encoding: where a tensor of an ONNX file lies elsewhere.
ELSEWHERE = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")


def load_onnx(path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of an ONNX file.

    Raises:
        ValueError: The file is broken, or would have other files read.
    """
    import onnxruntime

    if _reads_others(path):
        raise ValueError("it keeps weights in other files, which are not read")
    try:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = compute_threads()
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no class in common
        raise ValueError(error) from error
    inputs = session.get_inputs()
    names = [x.name for x in inputs]

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return [np.asarray(result) for result in results]

    return Graph([size if isinstance(size, int) else None for size in inputs[0].shape], call)


def _reads_others(path: Path) -> bool:
    """Return whether an ONNX file names others that hold its weights."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return ELSEWHERE.search(content) is not None
