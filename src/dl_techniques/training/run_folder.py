"""The folder of a run: its settings, its log, its lock."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from dl_techniques.atomic import check_writable, is_temporary, unwritable, write_file
from dl_techniques.errors import FileError

CONFIG, LOG, LOCK = "config.json", "log.csv", ".lock"
CHECKPOINTS = "checkpoints"
UNBEGUN = (LOCK, CHECKPOINTS)  # and temporary files: what a run leaves that is killed before its settings are there
DATA = ("images", "masks", "targets", "val_images", "val_masks", "val_targets")  # settings that say where it is
FILES = "files.csv"  # digests of the data
PROLONGABLE = ("steps", "cooldown")  # may differ when a run is resumed

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
        write_file(
            folder / CONFIG, json.dumps({"task": task, **_plain(config), "versions": dict(versions)}, indent=2).encode()
        )
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
    """Raise `FileError` if a run cannot begin or go on in a folder; nothing is written.

    When resuming, what the settings leave open is as it was settled at the first start.
    """
    if resume:
        _compare(folder, _plain(config))
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
    return dict(_stored(folder).get("versions", {}))


def stored_config(folder: Path, kind: type[Config]) -> Config:
    """Return the settings that a run began with.

    Raises:
        FileError: The folder holds no run, or one of another version.
    """
    stored = _stored(folder)
    hints = typing.get_type_hints(kind)
    try:
        values = {f.name: _restored(stored[f.name], hints[f.name]) for f in fields(typing.cast(Any, kind))}
        return kind(**{**values, "output": folder})
    except (KeyError, TypeError) as error:
        raise FileError(
            str(folder / CONFIG), f"does not fit this version: {error}.", "Resume with the version that started it."
        ) from error


def trim_log(folder: Path, epochs: int) -> None:
    """Take from the log what was written after the checkpoint that a run goes on from."""
    path = folder / LOG
    if not path.exists():
        return
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *(row for row in rows if int(row[0]) < epochs)])
    write_file(path, text.getvalue().encode())


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the numbers of each epoch so far."""
    path = folder / LOG
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def best_so_far(folder: Path, name: str) -> float:
    """Return the highest value of a figure in a run's log, minus infinity if there is none."""
    return max((row[name] for row in read_log(folder)), default=-math.inf)


def epochs_since_best(folder: Path, name: str) -> int:
    """Return how many epochs at the end of a run's log did not bring a higher value of a figure; 0 without a log."""
    values = [row[name] for row in read_log(folder)]
    return len(values) - 1 - values.index(max(values)) if values else 0


def write_split(folder: Path, training: Iterable[str], validation: Iterable[str]) -> None:
    """Write the names of the samples that are trained on and of those that are validated on."""
    lines = ["side,name"]
    for side, names in (("training", training), ("validation", validation)):
        lines += [f'{side},"{name}"' for name in names]
    write_file(folder / "split.csv", "\n".join([*lines, ""]).encode())


def _plain(config: Any) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    for name in DATA:  # a run may be resumed from another folder
        if values.get(name) is not None:
            values[name] = os.path.abspath(values[name])
    return json.loads(json.dumps(values))


def _stored(folder: Path) -> dict[str, Any]:
    try:
        stored = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or "task" not in stored:
            raise ValueError("it names no task")
    except (OSError, ValueError) as error:
        raise FileError(str(folder), f"holds no run: {CONFIG}: {error}.", "Name the folder of a run.") from error
    return stored


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


def _restored(value: Any, hint: Any) -> Any:
    """Return a value from JSON as its field has it: a path, a tuple."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, str) and Path in options:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
