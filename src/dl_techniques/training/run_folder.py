"""The folder of a run: its settings, its log, its lock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from dl_techniques.atomic import check_writable, is_temporary, unwritable, write_file
from dl_techniques.data_files import checked_fields, read_csv, read_json, write_csv
from dl_techniques.errors import ArgumentError, FileError

CONFIG, LOG, LOCK = "config.json", "log.csv", ".lock"
CHECKPOINTS = "checkpoints"
UNBEGUN = (LOCK, CHECKPOINTS)  # and temporary files: what a run leaves that is killed before its settings are there
DATA = ("images", "masks", "targets", "val_images", "val_masks", "val_targets")  # settings that say where it is
FILES = "files.csv"  # digests of the data
PROLONGABLE = ("steps", "cooldown")  # may differ when a run is resumed
DIGEST = "sha256"  # of the settings that a run keeps
RESTORE = "Restore it from a backup, or start a new run."

Config = TypeVar("Config")


@contextlib.contextmanager
def open_run(folder: Path, task: str, config: Any, resume: bool, versions: Mapping[str, str]) -> Iterator[Path]:
    """Hold a run's folder for this process and give the folder of its checkpoints.

    `config` is a dataclass of settings, when resuming those of the first start; `versions` are those of what computes
    it.

    Raises:
        FileError: The folder exists and is not to be resumed, is not a run of these settings, cannot be written, or
            another process trains in it.
    """
    from filelock import FileLock, Timeout

    check_run(folder, config, resume)
    checkpoints = folder / CHECKPOINTS
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        settings = {"task": task, **_plain(config), "versions": dict(versions)}
        write_file(folder / CONFIG, json.dumps({**settings, DIGEST: _digest(settings)}, indent=2).encode())
    except Timeout as error:
        raise FileError(str(folder), "is in use: another process trains in it.", "Wait for it, or stop it.") from error
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}."
        raise FileError(str(folder), reason, "Choose another folder.") from error
    try:
        yield checkpoints
    finally:
        lock.release()


def check_run(folder: Path, config: Any, resume: bool) -> None:
    """Raise `FileError` if a run cannot begin or go on in a folder, or its log is damaged; nothing is written.

    When resuming, what the settings leave open is as it was settled at the first start.
    """
    if resume:
        _compare(folder, _plain(config))
        read_log(folder)
    elif folder.exists() and (
        not folder.is_dir() or any(path.name not in UNBEGUN and not is_temporary(path) for path in folder.iterdir())
    ):
        raise FileError(str(folder), "exists already.", "Name a new folder, or resume the run in it.")
    check_writable(folder)


@contextlib.contextmanager
def naming_resume_command(folder: Path) -> Iterator[None]:
    """Raise what a disk or a file refuses in a run that has begun as `FileError` that tells how to go on.

    Args:
        folder: The run's folder.
    """
    try:
        yield
    except FileError as error:
        raise FileError(error.subject, error.reason, f"{error.remedy} {_go_on(folder)}") from error
    except OSError as error:
        refusal = unwritable(Path(error.filename or folder), error)
        raise FileError(refusal.subject, refusal.reason, f"{refusal.remedy} {_go_on(folder)}") from error


def _go_on(folder: Path) -> str:
    return f"Then resume with: convunext train --resume {folder}"


def task_of(folder: Path) -> str:
    """Return what a run trains for.

    Raises:
        FileError: The folder holds no run.
    """
    return str(_stored(folder)["task"])


def stored_versions(folder: Path) -> dict[str, str]:
    """Return the versions of what computed a run last; see `fingerprint`.

    Raises:
        FileError: The folder holds no run.
    """
    return _stored(folder).get("versions", {})


def stored_config(folder: Path, kind: type[Config]) -> Config:
    """Return the settings that a run began with.

    Raises:
        FileError: The folder holds no run, one of another version, or a setting that cannot be.
    """
    path, stored = str(folder / CONFIG), _stored(folder)
    names = [field.name for field in fields(typing.cast(Any, kind))]
    if missing := [name for name in names if name not in stored]:
        reason = f"does not fit this version: it has no {missing[0]}."
        raise FileError(path, reason, "Resume with the version that started it.")
    values = checked_fields({name: stored[name] for name in names}, typing.get_type_hints(kind), path, RESTORE)
    try:
        config = kind(**{**values, "output": folder})
    except ArgumentError as error:
        raise FileError(path, f"holds a setting that cannot be: {error}", RESTORE) from error
    if stored.pop(DIGEST, None) not in (None, _digest(stored)):
        raise FileError(path, "was changed since the run started: its SHA-256 differs.", RESTORE)
    return config


def trim_log(folder: Path, epochs: int, digest: str = "") -> None:
    """Take from the log what was written after the checkpoint that a run goes on from.

    Args:
        folder: Of the run.
        epochs: Epochs that ended before the checkpoint.
        digest: What `log_digest` returned then, if that is known.

    Raises:
        FileError: It is damaged, holds fewer epochs, or other figures than then.
    """
    path, found = folder / LOG, len(read_log(folder))
    if found < epochs:
        raise FileError(str(path), f"holds {found} epochs; the checkpoint is of epoch {epochs}.", RESTORE)
    if found > epochs > 0:
        header, rows = read_csv(path, RESTORE)
        write_csv(path, header, rows[:epochs])
    elif not epochs:
        path.unlink(missing_ok=True)
    if digest and digest != log_digest(folder):
        raise FileError(str(path), "was changed since the checkpoint: its SHA-256 differs.", RESTORE)


def log_epoch(path: Path, figures: Mapping[str, float]) -> None:
    """Add the figures of an epoch to a log, which is complete at any moment.

    Raises:
        FileError: The log is damaged or cannot be written.
    """
    header, rows = read_csv(path, RESTORE) if path.exists() else (list(figures), [])
    if header != list(figures):
        raise FileError(str(path), f"has the columns {', '.join(header)}, not {', '.join(figures)}.", RESTORE)
    write_csv(path, header, [*rows, list(figures.values())])


def log_digest(folder: Path) -> str:
    """Return the SHA-256 of a run's log; that of nothing if there is none."""
    path = folder / LOG
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the numbers of each epoch so far.

    Raises:
        FileError: The log is damaged.
    """
    path = folder / LOG
    if not path.exists():
        return []
    header, rows = read_csv(path, RESTORE)
    try:
        log = [dict(zip(header, map(float, row), strict=True)) for row in rows]
    except ValueError as error:
        raise FileError(str(path), f"holds what is no number: {error}.", RESTORE) from error
    if "epoch" not in header or [row["epoch"] for row in log] != list(range(len(log))):
        raise FileError(str(path), "does not count its epochs from 0 in a column epoch.", RESTORE)
    return log


def logged_values(folder: Path, name: str) -> list[float]:
    """Return a figure of each epoch so far.

    Raises:
        FileError: The log is damaged or lacks the figure.
    """
    log = read_log(folder)
    if log and name not in log[0]:
        raise FileError(str(folder / LOG), f"has no column {name}.", RESTORE)
    return [row[name] for row in log]


def best_so_far(folder: Path, name: str) -> float:
    """Return the highest value of a figure in a run's log, minus infinity if there is none."""
    return max(logged_values(folder, name), default=-math.inf)


def epochs_since_best(folder: Path, name: str) -> int:
    """Return how many epochs at the end of a run's log did not bring a higher value of a figure; 0 without a log."""
    values = logged_values(folder, name)
    return len(values) - 1 - values.index(max(values)) if values else 0


def write_split(folder: Path, training: Iterable[str], validation: Iterable[str]) -> None:
    """Write the names of the samples that are trained on and of those that are validated on."""
    rows = [("training", name) for name in training] + [("validation", name) for name in validation]
    write_csv(folder / "split.csv", ("side", "name"), rows)


def _plain(config: Any) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    for name in DATA:  # a run may be resumed from another folder
        if values.get(name) is not None:
            values[name] = os.path.abspath(values[name])
    return json.loads(json.dumps(values))


def _stored(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise FileError(str(folder), f"holds no run: it has no {CONFIG}.", "Name the folder of a run.")
    stored = read_json(path, RESTORE)
    if "task" not in stored:
        raise FileError(str(path), "names no task.", RESTORE)
    known = {"task": str, "versions": dict[str, str]}
    stored |= checked_fields({name: stored[name] for name in known if name in stored}, known, str(path), RESTORE)
    return stored


def _digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings that stay as they are while a run lasts, wherever its data are."""
    changing = (*PROLONGABLE, *DATA, "output", "versions")
    kept = {name: value for name, value in settings.items() if name not in changing}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _compare(folder: Path, settings: dict[str, Any]) -> None:
    stored = _stored(folder)
    movable = DATA if (folder / FILES).exists() else ()  # its digests tell whether the data are the same
    different = [
        f"{name} was {stored.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if name not in (*PROLONGABLE, *movable, "output") and not _open(name, value) and stored.get(name) != value
    ]
    if different:
        reason = f"was started with other settings: {'; '.join(different)}."
        raise FileError(str(folder), reason, "Resume with the original settings, or start a new run.")


def _open(name: str, value: Any) -> bool:
    """Return whether a setting is left to the data."""
    return value in (None, "auto") or (name == "classes" and not value)
