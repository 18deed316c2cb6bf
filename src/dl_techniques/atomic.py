"""Files and folders that appear whole or not at all, made under temporary names that are unique and exclusive."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from dl_techniques.errors import FileError

ENDING = ".tmp"
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)  # of file systems that do not know it


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either the old content or the new is there, whole.

    Raises:
        FileError: There is no room or no permission; the old content is still there.
    """
    with staged_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes its place when the context ends, and leaves nothing behind after an error.

    Raises:
        FileError: There is no room or no permission; the old content is still there.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # there may be no way to it at all
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`, on the same file system, that is gone when the context ends.

    What is to last is moved out of it by `publish`.

    Raises:
        FileError: The folder around it cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", suffix=ENDING, dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, parts: Sequence[Path]) -> None:
    """Move files and folders out of a staged folder to their places; what they hold is on the disk before.

    What lies there goes away first, and comes back if this fails.

    Args:
        staging: Holds what is to be moved, by the names of the places.
        parts: Places. The last makes the others complete: it goes first when old and comes last when new.

    Raises:
        FileError: They cannot be written.
    """
    replaced = staging / f"{secrets.token_hex(8)}.old"
    try:
        for path in staging.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        replaced.mkdir()
        for part in reversed(parts):
            if part.exists():
                os.rename(part, replaced / part.name)
        for part in parts:
            os.rename(staging / part.name, part)
    except OSError as error:
        for part in parts:
            if (replaced / part.name).exists():
                os.replace(replaced / part.name, part)
        raise unwritable(parts[-1], error) from error
    with contextlib.suppress(OSError):  # all of it is in its place
        _sync_folder(parts[-1].parent)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that nothing has."""
    return path.with_name(f".{path.stem[:40]}-{secrets.token_hex(8)}{ENDING}")


def is_temporary(path: Path) -> bool:
    """Return whether a file or folder has a name that is given here: left by a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(ENDING)


def unwritable(path: Path, error: OSError) -> FileError:
    """Return the refusal of a file that could not be written, with what to do about that."""
    remedies = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space.")
    remedies[errno.EFBIG] = "Allow larger files (`ulimit -f`)."
    remedy = remedies.get(error.errno or 0, "Choose another place.")
    return FileError(str(path), f"cannot be written: {error.strerror or error}.", remedy)


def check_writable(folder: Path) -> None:
    """Raise `FileError` if a folder cannot be made or written to; nothing is left there."""
    place = Path(os.path.abspath(folder))
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = f"cannot be written: {place}: {error.strerror or error}."
        raise FileError(str(folder), reason, "Choose another --output.") from error


def _sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk; network file systems that cannot do it lose nothing of the file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
