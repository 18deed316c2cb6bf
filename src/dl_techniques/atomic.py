"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from dl_techniques.errors import FileError


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either the old content or the new is there, whole.

    Raises:
        FileError: There is no room or no permission; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be no way to it at all
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


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
