"""What a model runs on, settled before anything heavy is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.inference.cache import Conversion, ConversionError, Runtime, convert
from dl_techniques.inference.settings import EngineName, Precision

RUN_MODEL = "model.keras"  # in the folder of a training run
WITHOUT_KERAS = (".onnx", ".xml")
RUNTIMES = {".keras": "keras", ".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}


def needs_keras(source: str | os.PathLike | None) -> bool:
    """Return whether a model is one of Keras; `None` stands for a preset."""
    return source is None or Path(source).suffix not in WITHOUT_KERAS


@dataclass(frozen=True)
class Choice:
    """What a model runs on.

    Attributes:
        path: The model's file or folder.
        runtime: What it runs on.
        conversion: The model for that, `None` for Keras and for exports.
        said: What the user is told of it, one line; nothing of exports.
    """

    path: Path
    runtime: str
    conversion: Conversion | None = None
    said: str = ""

    @property
    def engine(self) -> EngineName:
        """What to ask `load_engine` for so that it comes out again."""
        if self.conversion is None:
            return "keras" if self.runtime == "keras" else "auto"
        return "openvino" if self.runtime == "openvino" else "onnxruntime"


def choose_engine(
    source: str | os.PathLike, engine: EngineName | None = None, precision: Precision = "float32"
) -> Choice:
    """Return what a model runs on, converted for it where it must be; Keras is not imported.

    Args:
        source: As `load_engine` takes it.
        engine: As `load_engine` takes it.
        precision: As `load_engine` takes it.

    Raises:
        FileError: There is no such file, or the model cannot be converted for the engine that is named.
        ArgumentError: There is no such preset, or the engine or the precision does not fit the model or the machine.
    """
    path, own = find_model(source)
    if engine not in (None, *get_args(EngineName)):
        raise ArgumentError("engine", f"must be one of {', '.join(get_args(EngineName))}", engine)
    if precision not in get_args(Precision):
        raise ArgumentError("precision", f"must be one of {', '.join(get_args(Precision))}", precision)
    if own != "keras" and engine not in (None, "auto", own):
        remedy = f"Leave --engine out; {own} runs it. Other engines run the .keras file or preset it was made from."
        raise ArgumentError("engine", f"must be {own} for {path.name}, which was exported for it", engine, remedy)
    if precision != "float32" and "openvino" not in (own, engine if own == "keras" else own) and engine != "auto":
        raise ArgumentError("precision", "must be float32: only openvino has another", precision, "Add --engine auto.")
    if own != "keras" or engine in (None, "keras"):
        return Choice(path, own, said="engine: keras" if own == "keras" else "")
    if engine == "auto":
        return _choose(path, precision)
    _check_installed(engine)
    try:
        return _converted(path, "openvino" if engine == "openvino" else "onnxruntime")
    except ConversionError as error:
        raise FileError(
            str(path), f"cannot be converted for {engine}: {error.reason}", "Add --engine keras."
        ) from error


def _choose(path: Path, precision: Precision) -> Choice:
    """Return what is taken for the fastest: OpenVINO on a CPU, for less processor time than Keras; Keras on a GPU."""
    why = ""
    if importlib.util.find_spec("openvino") is None:
        why = "openvino is not installed (pip install openvino)"
    elif shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        why = "this machine has a GPU, which openvino does not use"
    else:
        try:
            return _converted(path, "openvino")
        except ConversionError as error:
            why = f"openvino cannot be used: {error.reason}"
    if precision != "float32":
        raise ArgumentError("precision", f"must be float32: {why}", precision)
    return Choice(path, "keras", said=f"engine: keras; {why}")


def _converted(path: Path, runtime: Runtime) -> Choice:
    conversion = convert(path, runtime)
    said = f"engine: {runtime} {importlib.metadata.version(runtime)}"
    if conversion.seconds is not None:
        where = f"kept in {conversion.folder.parent}" if conversion.kept else "not kept: the cache cannot be written"
        said += f"; converted from {path.name} in {conversion.seconds:.1f} s, {where}"
    return Choice(path, runtime, conversion, said)


def _check_installed(engine: str) -> None:
    if importlib.util.find_spec(engine) is None:
        extra = {"onnxruntime": "onnx"}.get(engine, engine)
        rule = f"needs the module {engine!r}, which is not installed"
        raise ArgumentError("engine", rule, engine, f"pip install 'convunext[{extra}]', or add --engine keras.")


def find_model(source: str | os.PathLike) -> tuple[Path, str]:
    """Return the file or folder of a model, and what runs it: keras, openvino, onnxruntime, litert or tensorflow.

    Raises:
        FileError: There is no such file.
        ArgumentError: There is no such preset.
    """
    from dl_techniques.models.convunext.presets import preset_folder, shipped_presets

    path = Path(source)
    if (path / RUN_MODEL).is_file():
        path = path / RUN_MODEL
    if (path / "saved_model.pb").is_file():
        return path, "tensorflow"
    if path.suffix in RUNTIMES:
        if not path.is_file():
            raise FileError(str(path), "does not exist.", "Check the path.")
        return path, RUNTIMES[path.suffix]
    try:
        return preset_folder(str(source)), "keras"
    except ArgumentError as error:
        rule = f"must be a file (.keras, .onnx, .xml, .tflite), an exported folder or one of {shipped_presets()}"
        raise ArgumentError("model", rule, str(source)) from error
