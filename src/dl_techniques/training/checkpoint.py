"""Checkpoints: the complete state of a training run in one file, written atomically.

A file is written under a temporary name, flushed to disk and renamed; its name contains the digest of its content. Two
are kept: if the newer one is damaged, the older one is used.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError
from dl_techniques.training.distribution import gathered_value

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.npz")
KEPT = 2
UNREADABLE = (
    OSError, ValueError, RuntimeError, TypeError, EOFError, KeyError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def save_checkpoint(folder: Path, step: int, state: Mapping[str, np.ndarray], logged: str = "") -> Path:
    """Write the state after a step and delete all but the newest two.

    Args:
        folder: Where checkpoints lie; it exists.
        step: Steps done.
        state: Arrays by name.
        logged: Digest of the run's log.

    Returns:
        The file.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **state)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = logged.encode()
    content = buffer.getvalue()
    path = folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    write_file(path, content)
    for old in list_checkpoints(folder)[KEPT:]:
        old.unlink()
    return path


def check_space(folder: Path, model) -> None:
    """Raise `FileError` if the disk has too little free space for the checkpoints and models of a run."""
    state = sum(array.nbytes for array in model_state(model).values())
    missing = KEPT + 1 - len(list_checkpoints(folder))  # a third one exists while it is written
    needed = missing * state + 2 * 4 * model.count_params()  # best and last model, in float32
    if (free := shutil.disk_usage(folder).free) < needed:
        reason = f"has {free / 1e6:.1f} MB free; the checkpoints and models of this run take {needed / 1e6:.1f} MB."
        raise FileError(str(folder), reason, "Free some space.")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    return sorted((path for path in folder.glob("step-*.npz") if NAME.fullmatch(path.name)), reverse=True)


def step_of(path: Path) -> int:
    """Return the number of steps done at a checkpoint, from its name."""
    return int(path.name.split("-")[1])


def load_checkpoint(folder: Path) -> tuple[int, dict[str, np.ndarray], list[Path]]:
    """Read the newest undamaged checkpoint.

    Returns:
        Steps done, arrays by name, and the damaged files that were skipped.

    Raises:
        FileError: There is no checkpoint, or all are damaged.
    """
    damaged: list[Path] = []
    for path in list_checkpoints(folder):
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] != path.stem.split("-")[2]:
                raise ValueError("the digest differs")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return step_of(path), dict(arrays), damaged
        except UNREADABLE:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise FileError(str(folder), f"holds no intact checkpoint: {names} are damaged.", "Restore one from a backup.")
    raise FileError(str(folder), "holds no checkpoint.", "Name the folder of a run that has started training.")


def logged_digest(path: Path) -> str:
    """Return the digest of the log that was saved with an intact checkpoint; nothing if version 0.1 saved it."""
    with zipfile.ZipFile(path) as archive:
        return archive.comment.decode("ascii", "replace")


def save_model(model, path: Path) -> None:
    """Write a model without its optimizer to a `.keras` file, atomically."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    try:
        with tempfile.TemporaryDirectory() as folder:
            bare.save(Path(folder) / path.name)
            content = (Path(folder) / path.name).read_bytes()
    except OSError as error:
        raise FileError(
            str(path), f"cannot be made in {tempfile.gettempdir()}: {error}.", "Free some space."
        ) from error
    write_file(path, content)


def is_intact(path: Path) -> bool:
    """Return whether a `.keras` file exists and all its members match their checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except UNREADABLE:
        return False


def model_state(model) -> dict[str, np.ndarray]:
    """Return the state that determines further training: weights, optimizer, moving averages, random generators."""
    return {name: gathered_value(value) for name, value in _variables(model)}


def restore_model_state(model, state: Mapping[str, np.ndarray], source: Path) -> None:
    """Assign the result of `model_state` to a model of the same architecture and optimizer.

    Raises:
        FileError: A name or shape differs, or there are no numbers; nothing is assigned then.
    """
    variables = _variables(model)
    shapes = {name: tuple(value.shape) for name, value in variables}
    stored = {name: value.shape if value.dtype.kind not in "OSUM" else value.dtype for name, value in state.items()}
    if shapes != stored:
        first = min(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
        raise FileError(
            str(source),
            f"is of another run: {first!r} is {stored.get(first)} there and {shapes.get(first)} here.",
            "Resume with the original settings of the run.",
        )
    for name, variable in variables:
        variable.assign(state[name])


def _variables(model) -> list[tuple[str, Any]]:
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return [(f"{group}/{i}/{v.path}", v) for group, variables in groups.items() for i, v in enumerate(variables)]
