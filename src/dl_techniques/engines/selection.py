"""What a model runs on, settled before anything heavy is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from dl_techniques.engines.cache import Conversion, ConversionError, Runtime, convert
from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.errors import ArgumentError, FileError

RUN_MODEL = "model.keras"  # in the folder of a training run
WITHOUT_KERAS = (".onnx", ".xml")
# What a Keras model is converted for, the fastest first; what that takes, and the name to install it by.
FASTEST: tuple[tuple[Runtime, tuple[str, ...], str], ...] = (
    ("openvino", ("openvino",), "openvino"),
    ("onnxruntime", ("onnxruntime", "tf2onnx", "tensorflow"), "'convunext[onnx]'"),
)
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
        precision: What OpenVINO computes in.
    """

    path: Path
    runtime: str
    conversion: Conversion | None = None
    said: str = ""
    precision: Precision = "float32"


Model = str | os.PathLike | Choice  # what `load_engine` takes


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
        return Choice(path, own, None, "engine: keras" if own == "keras" else "", precision)
    if engine == "auto":
        return _choose(path, precision)
    _check_installed(engine)
    try:
        return _converted(path, "openvino" if engine == "openvino" else "onnxruntime", precision)
    except ConversionError as error:
        raise FileError(
            str(path), f"cannot be converted for {engine}: {error.reason}", "Add --engine keras."
        ) from error


def _choose(path: Path, precision: Precision) -> Choice:
    """Return what is taken for the fastest: OpenVINO, otherwise ONNX Runtime, on a CPU; Keras on a GPU."""
    reasons: list[str] = []
    candidates = FASTEST if precision == "float32" else FASTEST[:1]
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        reasons, candidates = ["this machine has a GPU, which only keras uses"], ()
    for runtime, modules, remedy in candidates:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            needed = "is not installed" if missing[0] == runtime else f"needs {missing[0]}, which is not installed"
            reasons.append(f"{runtime} {needed} (pip install {remedy})")
            continue
        try:
            choice = _converted(path, runtime, precision)
        except ConversionError as error:
            reasons.append(f"{runtime} cannot be used: {error.reason}")
            break  # what one cannot take the other will not either, after a long time
        return replace(choice, said="; ".join([choice.said, *reasons]))
    if precision != "float32":
        raise ArgumentError("precision", f"must be float32: {reasons[0]}", precision)
    return Choice(path, "keras", said="; ".join(["engine: keras", *reasons]))


def _converted(path: Path, runtime: Runtime, precision: Precision) -> Choice:
    conversion = convert(path, runtime)
    said = f"engine: {runtime} {importlib.metadata.version(runtime)}"
    if conversion.seconds is not None:
        where = f"kept in {conversion.folder.parent}" if conversion.kept else "not kept: the cache cannot be written"
        said += f"; converted from {path.name} in {conversion.seconds:.1f} s, {where}"
    return Choice(path, runtime, conversion, said, precision)


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
