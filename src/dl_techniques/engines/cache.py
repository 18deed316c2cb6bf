"""Models converted for another runtime, kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dl_techniques
from dl_techniques.card import file_digest
from dl_techniques.engines.subprocess import ConversionError, run_apart

Runtime = Literal["openvino", "onnxruntime"]
NAMES: dict[Runtime, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
SUFFIX: dict[Runtime, str] = {"openvino": ".xml", "onnxruntime": ".onnx"}
FACTS = "facts.json"
UNUSED_DAYS = 60  # after which a conversion is removed


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        folder: Holds `network` and, of V2 models, `tiles`, in the runtime's format.
        facts: What the graph tells: channels, tiling, use_bias.
        seconds: What it took; `None` if it was there.
        kept: Whether it will be there next time.
    """

    folder: Path
    facts: dict[str, Any]
    seconds: float | None = None
    kept: bool = True


def cache_folder() -> Path:
    """Return where conversions are kept: CONVUNEXT_CACHE, or the folder `convunext` of the user's caches."""
    import platformdirs

    named = os.environ.get("CONVUNEXT_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("convunext", appauthor=False)


def find_conversion(model: Path, runtime: Runtime) -> Conversion | None:
    """Return the conversion of a model that is there already and whole.

    Args:
        model: A `.keras` file or a preset's folder.
        runtime: What it shall run on.
    """
    key = _key(model, runtime)
    folder = _unkept(key) if key in _temporary else cache_folder() / key
    facts = _read_facts(folder)
    return None if facts is None else Conversion(folder, facts, kept=key not in _temporary)


def convert(model: Path, runtime: Runtime) -> Conversion:
    """Return a model converted, now or before.

    A process of its own does it, on the backend of Keras that suits the runtime, so that this one need not import
    Keras. Where the cache cannot be written, the conversion lasts as long as this process.

    Args:
        model: A `.keras` file or a preset's folder.
        runtime: What it shall run on.

    Raises:
        ConversionError: It cannot be done.
    """
    if found := find_conversion(model, runtime):
        return found
    start, key = time.perf_counter(), _key(model, runtime)
    try:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    except OSError:
        folder = _unkept(key)
        return Conversion(folder, _run(model, runtime, folder), time.perf_counter() - start, kept=False)
    try:
        facts = _run(model, runtime, staging)
        shutil.rmtree(cache / key, ignore_errors=True)  # there if it was broken
        os.rename(staging, cache / key)
    except OSError as error:
        if (found := find_conversion(model, runtime)) is None:  # another process was first otherwise
            raise ConversionError(str(cache), f"cannot be written: {error.strerror}.") from error
        return found
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _remove_unused(cache)
    return Conversion(cache / key, facts, time.perf_counter() - start)


_temporary: dict[str, tempfile.TemporaryDirectory] = {}  # removed at the end of the process


def _unkept(key: str) -> Path:
    if key not in _temporary:
        _temporary[key] = tempfile.TemporaryDirectory(prefix="convunext-")
    return Path(_temporary[key].name)


def _run(model: Path, runtime: Runtime, folder: Path) -> dict[str, Any]:
    """Convert in another process and return the facts."""
    backend = "openvino" if runtime == "openvino" else "tensorflow"
    arguments = [str(model.resolve()), runtime, str(folder)]
    run_apart("dl_techniques.engines.conversion", arguments, backend, str(model))
    facts = json.loads((folder / FACTS).read_bytes())
    facts["sha256"] = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != FACTS}
    (folder / FACTS).write_text(json.dumps(facts, indent=2))
    return facts


def _read_facts(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a conversion; `None` if it is not there, not whole or damaged."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        if all(file_digest(folder / name) == digest for name, digest in facts["sha256"].items()):
            _touch(folder)
            return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _touch(folder: Path) -> None:
    try:
        os.utime(folder)  # it was used
    except OSError:
        pass  # in a cache that others share and may not write to


def _remove_unused(cache: Path) -> None:
    oldest = time.time() - 86400 * UNUSED_DAYS
    for folder in cache.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _key(model: Path, runtime: Runtime) -> str:
    """Return what a conversion depends on, as a name: the model's files, our own code, and the versions."""
    files = [model] if model.is_file() else [model / "config.json", model / "model.weights.safetensors"]
    try:
        digests = [file_digest(path) for path in files]
        versions = [importlib.metadata.version(name) for name in ("keras", runtime)]
    except OSError as error:
        raise ConversionError(str(model), f"cannot be read: {error.strerror}.") from error
    except importlib.metadata.PackageNotFoundError as error:
        raise ConversionError(str(model), f"needs the module {error.name!r}, which is not installed.") from error
    parts = [runtime, *digests, dl_techniques.__version__, *versions, _code_digest()]
    return f"{runtime}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]}"


@functools.cache
def _code_digest() -> str:
    """Return the digest of the code that makes graphs: the version alone does not tell a change under development."""
    package = Path(dl_techniques.__file__).parent
    files = [*sorted((package / "layers").glob("*.py")), *sorted((package / "models").rglob("*.py"))]
    digests = [file_digest(path) for path in (*files, package / "engines" / "conversion.py")]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
