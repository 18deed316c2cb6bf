"""The one table of artifact formats and of runtimes: a new format is a module in this room and a row here.

Functions stand here by name, `"module:function"` of this room, and are imported when they are needed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What computes a network.

    Attributes:
        modules: What must be installed.
        extra: Extra of this package that installs it; empty for what the package itself needs.
        conversion: Format that a Keras model is converted to for it; empty if it is not.
        precisions: What it can compute in.
        wide_copies: Copies of the finest level's widest tensor that are in memory at once, by the peak of the resident
            memory (`benchmarks/tiling.py pixels`, `memory`); those of OpenVINO for sizes that it is compiled for.
        keeps_outputs: Whether the outputs of all layers stay in memory until the network is done.
        small_image_factor: How many times as much memory images take that it may not be compiled for.
        uses_gpu: Whether it computes on a GPU where there is one.
        starts_keras: Whether Keras, or TensorFlow, is imported.
    """

    modules: tuple[str, ...]
    extra: str = ""
    conversion: str = ""
    precisions: tuple[str, ...] = ("float32",)
    wide_copies: float = 6.5
    keeps_outputs: bool = True
    small_image_factor: float = 1.0
    uses_gpu: bool = False
    starts_keras: bool = False


# fmt: off
RUNTIMES = {  # those that a Keras model is converted for: the fastest first
    "keras": Runtime(modules=("keras",), uses_gpu=True, starts_keras=True),
    "openvino": Runtime(modules=("openvino",), extra="openvino", conversion="openvino", wide_copies=1.45,
                        keeps_outputs=False, small_image_factor=2.5, precisions=("float32", "bfloat16")),
    "onnxruntime": Runtime(modules=("onnxruntime",), extra="onnx", conversion="onnx", wide_copies=5.0,
                           keeps_outputs=False),
    "litert": Runtime(modules=("tensorflow",), starts_keras=True),
    "tensorflow": Runtime(modules=("tensorflow",), uses_gpu=True, starts_keras=True),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ArtifactFormat:
    """A file format for deployment.

    Attributes:
        name: As `--format` has it.
        title: As people say it.
        suffix: Of the file; empty for a folder.
        marker: File by which a folder is recognised.
        companions: Suffixes of the files that lie beside it.
        runtime: What runs it.
        loader: Maps `(path, precision)` to an `engines.engine.Graph`.
        writer: Maps `(model, path)`, a functional Keras model, to nothing.
        checker: Maps a path to the name of an operation that no artifact of this package has and that may read or write
            files or never end, `""` if there is none; empty where operations can do neither.
        backend: Of Keras, which the writer needs; empty for any.
        modules: What the writer needs beside the runtime.
        max_bytes: Weights must be smaller; `None` for any size.
        tiles: Whether it can be made for tiles of large images.
        int8: Whether it can be made of 8-bit integers, by `export.quantize`.
    """

    name: str
    title: str
    suffix: str = ""
    marker: str = ""
    companions: tuple[str, ...] = ()
    runtime: str
    loader: str
    writer: str
    checker: str = ""
    backend: str = ""
    modules: tuple[str, ...] = ()
    max_bytes: int | None = None
    tiles: bool = False
    int8: bool = False

    def load(self, path: Path, precision: Precision = "float32") -> Any:
        """Return the graph of an artifact, an `engines.engine.Graph`."""
        return _function(self.loader)(path, precision)

    def foreign_operation(self, path: Path) -> str:
        """Return the name of an operation in an artifact that none of this package has, `""` if there is none."""
        return _function(self.checker)(path) if self.checker else ""

    def write(self, model: Any, path: Path) -> None:
        """Write a functional Keras model."""
        _function(self.writer)(model, path)

    def parts(self, path: Path) -> list[Path]:
        """Return the files of an artifact, its card left out; the last makes it complete."""
        return [*(path.with_suffix(suffix) for suffix in self.companions), path]


_MESSAGE = 2**31  # bytes of one message of a serializer that counts to there
# fmt: off
FORMATS = {row.name: row for row in (
    ArtifactFormat(name="onnx", title="ONNX", suffix=".onnx", runtime="onnxruntime", loader="onnx:load_onnx",
                   writer="tensorflow:write_onnx", checker="onnx:foreign_onnx", backend="tensorflow",
                   modules=("onnx", "tf2onnx", "tensorflow"), max_bytes=_MESSAGE, tiles=True, int8=True),
    ArtifactFormat(name="openvino", title="OpenVINO", suffix=".xml", companions=(".bin",), runtime="openvino",
                   loader="openvino:load_openvino", writer="openvino:write_openvino",
                   checker="openvino:foreign_openvino", backend="openvino", tiles=True),
    ArtifactFormat(name="saved_model", title="SavedModel", marker="saved_model.pb", runtime="tensorflow",
                   loader="tensorflow:load_saved_model", writer="tensorflow:write_saved_model",
                   checker="saved_model:foreign_saved_model", backend="tensorflow"),
    ArtifactFormat(name="litert", title="LiteRT", suffix=".tflite", runtime="litert", max_bytes=_MESSAGE,
                   loader="tensorflow:load_litert", writer="tensorflow:write_litert", backend="tensorflow"),
)}
# fmt: on
CONVERTED = {name: FORMATS[runtime.conversion] for name, runtime in RUNTIMES.items() if runtime.conversion}
SUFFIXES = [row.suffix for row in FORMATS.values() if row.suffix]

if TYPE_CHECKING:
    EngineName = str
    FormatName = str
else:
    EngineName = Literal[("auto", "keras", *CONVERTED)]
    FormatName = Literal[tuple(FORMATS)]


def find_format(path: Path) -> ArtifactFormat | None:
    """Return the format of an exported file, by its suffix, or folder, by what lies in it; `None` for other models."""
    for row in FORMATS.values():
        if (path / row.marker).is_file() if row.marker else path.suffix == row.suffix:
            return row
    return None


def artifact_files(path: Path) -> list[Path]:
    """Return the files of a model, its card left out."""
    row = find_format(path)
    return [path] if row is None else row.parts(path)


def missing_modules(modules: Iterable[str]) -> list[str]:
    """Return those modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"dl_techniques.engines.{module}"), function)
