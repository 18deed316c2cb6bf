"""Fingerprint of a run: digests of its files and versions of its libraries, compared when it resumes."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from dl_techniques import __version__
from dl_techniques.atomic import write_file
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import FileError, first_of

FILES = "files.csv"
COLUMNS = ("image", "target", "image_sha256", "target_sha256")


def write_fingerprints(folder: Path, inspection: Inspection) -> None:
    """Write the digest of each image and target to the run's folder."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for facts in inspection.facts:
        pair = facts.pair
        rows.writerow([_location(pair, pair.image), _location(pair, pair.target), facts.digest, facts.target_digest])
    write_file(folder / FILES, text.getvalue().encode("utf-8", "surrogateescape"))


def compare_fingerprints(folder: Path, inspection: Inspection) -> None:
    """Raise `FileError` if files differ from those that the run began with.

    Args:
        folder: The run's folder; one without digests is a run that has not begun, which accepts any files.
        inspection: Inspection of the current files.
    """
    path = folder / FILES
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        stored = [tuple(row.get(name) or "" for name in COLUMNS) for row in csv.DictReader(file)]
    before: dict[str, str] = {}
    for image, target, *digests in stored:
        before |= dict(zip((image, target), digests, strict=True))
    now: dict[str, str] = {}
    for facts in inspection.facts:
        now[_location(facts.pair, facts.pair.image)] = facts.digest
        now[_location(facts.pair, facts.pair.target)] = facts.target_digest
    changes = {
        "replaced": [name for name in before if name in now and before[name] != now[name]],
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
    }
    differences = [f"{len(names)} {change}: {first_of(names)}" for change, names in changes.items() if names]
    if differences:
        reason = f"was begun on other files; since then {'; '.join(differences)}."
        raise FileError(str(folder), reason, "Restore the files, or begin a new run.")


def _location(pair: Pair, path: Path | None) -> str:
    """Return absolute path and page of a file, so that a run may resume in another folder; empty without a file."""
    return os.path.abspath(pair.words(path)) if path else ""


def versions() -> dict[str, str]:
    """Return the name of the backend, and the versions that the results of a run depend on."""
    import keras
    import numpy

    backend = keras.backend.backend()
    return {
        "convunext": __version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": backend,
        backend: importlib.metadata.version(backend),
        "numpy": numpy.__version__,
    }


def compare_versions(folder: Path, stored: Mapping[str, str]) -> list[str]:
    """Return a description of each version that has changed since the run began.

    Args:
        folder: The run's folder.
        stored: Result of `versions` when the run began.

    Raises:
        FileError: The run began on another backend.
    """
    here = versions()
    backend = stored.get("backend", here["backend"])
    if backend != here["backend"]:
        reason = f"was begun on {backend}; on {here['backend']} it would end elsewhere."
        raise FileError(str(folder), reason, f"Set KERAS_BACKEND={backend}, or say --backend {backend}.")
    return [
        f"{name} was {stored[name]} and is {version}"
        for name, version in here.items()
        if stored.get(name, version) != version
    ]
