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

# The type of a node, field 4 of its message: what may repeat without end.
LOOPS = re.compile(rb"(?:\x22|\xa2\x80*\x00)(?:\x04|\x84\x80*\x00)(Loop|Scan)")


def load_onnx(path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of an ONNX file.

    Raises:
        ValueError: The file is broken, or would have other files read.
    """
    import onnxruntime

    if _found(ELSEWHERE, path):
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


def foreign_onnx(path: Path) -> str:
    """Return the name of a loop in an ONNX file, `""` if there is none."""
    found = _found(LOOPS, path)
    return found[1].decode() if found else ""


def _found(pattern: re.Pattern[bytes], path: Path) -> re.Match[bytes] | None:
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = pattern.search(content)
            return found and pattern.match(found[0])  # of bytes that last
