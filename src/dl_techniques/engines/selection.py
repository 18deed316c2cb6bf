"""Selects what runs a model before anything heavy is imported."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from dl_techniques.engines.cache import Conversion, ConversionError, convert
from dl_techniques.engines.formats import (
    CONVERTED,
    RUNTIMES,
    SUFFIXES,
    ArtifactFormat,
    EngineName,
    Precision,
    find_format,
    missing_modules,
)
from dl_techniques.errors import ArgumentError, FileError, pip_install

RUN_MODEL, RUN_CHECKPOINTS = "model.keras", "checkpoints"  # in the folder of a training run


@dataclass(frozen=True)
class EngineSelection:
    """What a model runs on: runtime, precision, its conversion if it needs one.

    `message` is what the user reads of it, one line; nothing of exports.
    """

    path: Path
    runtime: str
    artifact_format: ArtifactFormat | None = None
    conversion: Conversion | None = None
    message: str = ""
    precision: Precision = "float32"

    @property
    def starts_keras(self) -> bool:
        """Whether loading the model imports Keras or TensorFlow."""
        return RUNTIMES[self.runtime].starts_keras


Model = str | os.PathLike | EngineSelection  # what `load_engine` takes


def select_engine(
    source: str | os.PathLike, engine: EngineName | None = None, precision: Precision = "float32"
) -> EngineSelection:
    """Return what runs a model, converted for it where it must be; Keras is not imported.

    Args:
        source: As `load_engine` takes it.
        engine: As `load_engine` takes it.
        precision: As `load_engine` takes it.

    Raises:
        FileError: There is no such file, or the model cannot be converted for the engine that is named.
        ArgumentError: There is no such preset, or the engine or the precision does not fit the model or the machine.
    """
    path, form = find_model(source)
    for name, value, known in ("engine", engine or "auto", EngineName), ("precision", precision, Precision):
        if value not in get_args(known):
            raise ArgumentError(name, f"must be one of {', '.join(get_args(known))}", value)
    own = "keras" if form is None else form.runtime
    if form is not None and engine not in (None, "auto", own):
        remedy = f"Leave --engine out; {own} runs it. Other engines run the .keras file or preset that was exported."
        raise ArgumentError("engine", f"must be {own} for {path.name}, which was exported for it", engine, remedy)
    runtime = own if form is not None or engine is None else engine
    if runtime == "auto":
        return _select_fastest(path, precision)
    if precision not in RUNTIMES[runtime].precisions:
        able = " or ".join(name for name, facts in RUNTIMES.items() if precision in facts.precisions)
        raise ArgumentError("precision", f"must be float32: only {able} has another", precision, "Add --engine auto.")
    if runtime not in CONVERTED or form is not None:
        message = "engine: keras" if engine is not None and form is None else ""
        return EngineSelection(path, runtime, form, None, message, precision)
    if missing := missing_modules(RUNTIMES[runtime].modules):
        remedy = f"{pip_install(RUNTIMES[runtime].extra)}, or add --engine keras."
        raise ArgumentError("engine", f"needs the module {missing[0]!r}, which is not installed", engine, remedy)
    try:
        return _converted(path, runtime, precision)
    except ConversionError as error:
        reason = f"cannot be converted for {engine}: {error.reason}"
        raise FileError(str(path), reason, "Add --engine keras.") from error


def _select_fastest(path: Path, precision: Precision) -> EngineSelection:
    """Return what is taken for the fastest: on a CPU the first runtime that is installed; Keras on a GPU."""
    reasons: list[str] = []
    candidates = [name for name in CONVERTED if precision in RUNTIMES[name].precisions]
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        reasons, candidates = ["this machine has a GPU, which only keras uses"], []
    for runtime in candidates:
        if missing := missing_modules((*RUNTIMES[runtime].modules, *CONVERTED[runtime].modules)):
            needed = "is not installed" if missing[0] == runtime else f"needs {missing[0]}, which is not installed"
            reasons.append(f"{runtime} {needed} ({pip_install(RUNTIMES[runtime].extra)})")
            continue
        try:
            selection = _converted(path, runtime, precision)
        except ConversionError as error:
            reasons.append(f"{runtime} cannot be used: {error.reason}")
            break  # what one cannot take the other will not either, after a long time
        return replace(selection, message="; ".join([selection.message, *reasons]))
    if precision != "float32":
        raise ArgumentError("precision", f"must be float32: {reasons[0]}", precision)
    return EngineSelection(path, "keras", message="; ".join(["engine: keras", *reasons]))


def _converted(path: Path, runtime: str, precision: Precision) -> EngineSelection:
    conversion = convert(path, runtime)
    message = f"engine: {runtime} {importlib.metadata.version(runtime)}"
    if conversion.seconds is not None:
        place = f"cached in {conversion.folder.parent}" if conversion.cached else "not cached: writing failed"
        message += f"; converted from {path.name} in {conversion.seconds:.1f} s, {place}"
    return EngineSelection(path, runtime, None, conversion, message, precision)


def find_model(source: str | os.PathLike) -> tuple[Path, ArtifactFormat | None]:
    """Return the file or folder of a model, and the format of an export, `None` for models of Keras.

    Raises:
        FileError: There is no such file, or it is a run that has not ended.
        ArgumentError: There is no such preset.
    """
    from dl_techniques.models.convunext.presets import preset_folder, shipped_presets

    path = Path(source)
    if (path / RUN_MODEL).is_file():
        path = path / RUN_MODEL
    elif (path / RUN_CHECKPOINTS).is_dir():
        reason = f"is a training run without {RUN_MODEL}: it has not ended."
        raise FileError(str(path), reason, f"Resume it: convunext train --resume {path}")
    form = find_format(path)
    if path.suffix in (".keras", *SUFFIXES) and not path.is_file():
        raise FileError(str(path), "does not exist.", "Check the path.")
    if form is not None or path.suffix == ".keras":
        return path, form
    try:
        return preset_folder(str(source)), None
    except ArgumentError as error:
        known = f"a file ({', '.join(('.keras', *SUFFIXES))}), an exported folder or one of {shipped_presets()}"
        raise ArgumentError("model", f"must be {known}", str(source)) from error
