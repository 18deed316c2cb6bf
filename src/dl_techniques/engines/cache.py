"""Models converted for another runtime, in the user's cache folder."""

from __future__ import annotations

import contextlib
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
from typing import Any

import dl_techniques
from dl_techniques.atomic import publish, staged_folder
from dl_techniques.card import file_digest
from dl_techniques.data_files import read_json
from dl_techniques.engines.formats import CONVERTED
from dl_techniques.engines.subprocess import ConversionError, run_in_subprocess
from dl_techniques.errors import FileError

FACTS = "facts.json"
UNUSED_DAYS = 60  # after which a conversion is removed


@dataclass(frozen=True)
class Conversion:
    """A converted model: its folder, its graph's facts, seconds it took (`None`: none), whether it is cached."""

    folder: Path
    facts: dict[str, Any]
    seconds: float | None = None
    cached: bool = True


def cache_folder() -> Path:
    """Return where conversions lie: CONVUNEXT_CACHE, or the folder `convunext` of the user's caches."""
    import platformdirs

    named = os.environ.get("CONVUNEXT_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("convunext", appauthor=False)


def find_conversion(model: Path, runtime: str) -> Conversion | None:
    """Return the conversion of a model for a runtime that is there already and intact."""
    return _find(_key(model, runtime))


def convert(model: Path, runtime: str) -> Conversion:
    """Return a model, a `.keras` file or a preset's folder, converted for a runtime, now or before.

    A subprocess does it, on the backend of Keras that suits the runtime: this one need not import Keras. Where the
    cache cannot be written, the conversion lasts as long as this process. Raises `ConversionError` where it fails.
    """
    key = _key(model, runtime)
    if found := _find(key):
        return found
    start, folder = time.perf_counter(), cache_folder() / key
    with contextlib.ExitStack() as stack:
        try:
            staging = stack.enter_context(staged_folder(folder)) / key
            staging.mkdir()
        except (FileError, OSError):
            _temporary[key] = tempfile.TemporaryDirectory(prefix="convunext-")
            folder = Path(_temporary[key].name)
            return Conversion(folder, _run(model, runtime, folder), time.perf_counter() - start, cached=False)
        facts = _run(model, runtime, staging)
        if found := _find(key):  # another process was first
            return found
        try:
            publish(staging.parent, [folder])  # in the place of a damaged one
        except FileError as error:
            raise ConversionError(error.subject, error.reason) from error
    _remove_unused(folder.parent)
    return Conversion(folder, facts, time.perf_counter() - start)


_temporary: dict[str, tempfile.TemporaryDirectory] = {}  # by key; removed at the end of the process


def _run(model: Path, runtime: str, folder: Path) -> dict[str, Any]:
    """Convert in a subprocess and return the facts."""
    arguments = [str(model.resolve()), runtime, str(folder)]
    run_in_subprocess("dl_techniques.engines.conversion", arguments, CONVERTED[runtime].backend, str(model))
    facts = json.loads((folder / FACTS).read_bytes())
    facts["sha256"] = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != FACTS}
    (folder / FACTS).write_text(json.dumps(facts, indent=2))
    return facts


def _find(key: str) -> Conversion | None:
    """Return a conversion; `None` if it does not exist, is incomplete or damaged."""
    folder = Path(_temporary[key].name) if key in _temporary else cache_folder() / key
    try:
        facts = read_json(folder / FACTS, "Remove it.")
        if any(file_digest(folder / name) != digest for name, digest in facts["sha256"].items()):
            return None
    except (FileError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):  # of a cache that others share and may not write to
        os.utime(folder)  # it was used
    return Conversion(folder, facts, cached=key not in _temporary)


def _remove_unused(cache: Path) -> None:
    oldest = time.time() - 86400 * UNUSED_DAYS
    for folder in cache.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _key(model: Path, runtime: str) -> str:
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
    files = (path for room in ("layers", "models", "engines") for path in sorted((package / room).rglob("*.py")))
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()
