"""What a run was begun on: digests of its files and versions of what it computes with, compared when it goes on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from dl_techniques import __version__
from dl_techniques.data_files import read_csv, write_csv
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import FileError, first_of
from dl_techniques.training.run_folder import FILES, RESTORE

COLUMNS = ("image", "target", "image_sha256", "target_sha256")


def write_fingerprints(folder: Path, inspection: Inspection) -> None:
    """Write the digest of each image and of its target into the folder of a run."""
    pairs = ((facts.pair, facts.digest, facts.target_digest) for facts in inspection.facts)
    rows = [(_place(pair, pair.image), _place(pair, pair.target), *digests) for pair, *digests in pairs]
    write_csv(folder / FILES, COLUMNS, rows)


def compare_fingerprints(folder: Path, inspection: Inspection) -> None:
    """Raise `FileError` if files are not those that a run began on, wherever they are now.

    A run that has not begun is on any.
    """
    path = folder / FILES
    if not path.exists():
        return
    header, stored = read_csv(path, RESTORE)
    if tuple(header) != COLUMNS:
        raise FileError(str(path), f"has the columns {', '.join(header)}, not {', '.join(COLUMNS)}.", RESTORE)
    if [row[2:] for row in stored] == [[facts.digest, facts.target_digest] for facts in inspection.facts]:
        return
    before: dict[str, str] = {}
    for image, target, *digests in stored:
        before |= dict(zip((image, target), digests, strict=True))
    now: dict[str, str] = {}
    for facts in inspection.facts:
        now[_place(facts.pair, facts.pair.image)] = facts.digest
        now[_place(facts.pair, facts.pair.target)] = facts.target_digest
    changes = {
        "replaced": [name for name in before if name in now and before[name] != now[name]],
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
    }
    told = [f"{len(names)} {word}: {first_of(names)}" for word, names in changes.items() if names]
    if told:
        reason = f"was started on other files; since then {'; '.join(told)}."
        raise FileError(str(folder), reason, "Restore the files, or start a new run.")


def _place(pair: Pair, path: Path | None) -> str:
    """Return where a file is, and which of its pages, from whatever folder the run goes on; nothing for no file."""
    return os.path.abspath(pair.words(path)) if path else ""


def versions() -> dict[str, str]:
    """Return the versions that the numbers of a run depend on, and the backend's name."""
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
    """Return in words what has another version now than when a run began; raise `FileError` for another backend."""
    here = versions()
    backend = stored.get("backend", here["backend"])
    if backend != here["backend"]:
        reason = f"was started on {backend}; on {here['backend']} its result would differ."
        raise FileError(str(folder), reason, f"Set KERAS_BACKEND={backend}, or add --backend {backend}.")
    return [
        f"{name} was {stored[name]} and is {version}"
        for name, version in here.items()
        if stored.get(name, version) != version
    ]
