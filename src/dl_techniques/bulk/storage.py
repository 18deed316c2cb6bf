"""Folders of this machine, of buckets and of other file systems, with one interface."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dl_techniques.atomic import temporary_name
from dl_techniques.bulk.credentials import CREDENTIALS
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.formats import suffixes
from dl_techniques.inference.pipeline import find_inputs

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# A `Path` keeps one of the two slashes. A single letter is a drive.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
WHOLE_PUTS = ("s3", "gcs", "abfs")  # where a file appears when its last byte has come, and not before
BUFFER = 2**23
MAGIC = re.compile(r"[*?\[]")


def is_address(text: str | os.PathLike) -> bool:
    """Return whether a file is named by an address, such as `s3://bucket/name`, not by a path."""
    return ADDRESS.match(str(text)) is not None


class StorageError(FileError):
    """A file could not be fetched or stored; a later run may succeed."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """An image file: path or address, bytes, and nanoseconds since 1970 of its last change, 0 if unknown."""

    source: str
    bytes: int
    modified: int

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return PurePosixPath(self.source.partition("?")[0]).name


class Folder:
    """A folder, which need not exist yet.

    Args:
        text: Its path or address; what follows a `?` are settings of the file system and go with it.

    Attributes:
        remote: Whether the files must be fetched to be read.

    Raises:
        ArgumentError: There is no such file system, or a module for it is missing.
    """

    def __init__(self, text: str | os.PathLike) -> None:
        self.remote = is_address(text)
        if self.remote:
            address = CREDENTIALS.hide(ADDRESS.sub(r"\1://", str(text), count=1))
            self.files, self.path = _open(address)
            self._address, question, settings = address.partition("?")
            self._settings = question + settings
        else:
            from pyarrow.fs import LocalFileSystem

            self._address, self._settings = os.path.abspath(text), ""
            self.files, self.path = LocalFileSystem(), self._address
        self._address, self.path = self._address.rstrip("/") or "/", self.path.rstrip("/") or "/"

    def __str__(self) -> str:
        return self._address + self._settings

    def __truediv__(self, name: str) -> str:
        """Return the path or address of a file of the folder."""
        return f"{self._address}/{name}{self._settings}"

    def list(self) -> Iterator[FileInfo]:
        """Yield what is known of each file of the folder, not of folders in it; nothing if it does not exist.

        Raises:
            StorageError: It cannot be read.
        """
        from pyarrow.fs import FileSelector

        try:
            infos = self.files.get_file_info(FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise _refusal(str(self), "read", error) from error
        yield from (info for info in infos if info.is_file)

    def look(self, name: str) -> FileInfo:
        """Return what is known of a file, which need not exist.

        Raises:
            StorageError: It cannot be asked for.
        """
        try:
            return self.files.get_file_info([f"{self.path}/{name}"])[0]
        except OSError as error:
            raise _refusal(self / name, "read", error) from error

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to this machine.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            with self.files.open_input_file(f"{self.path}/{name}") as file:
                file.download(str(path), buffer_size=BUFFER)
        except OSError as error:
            raise _refusal(self / name, "read", error) from error

    def store(self, name: str, content: Path | bytes) -> None:
        """Write a file, of this machine or of memory, so that it is there whole or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        import pyarrow as pa

        path = f"{self.path}/{name}"
        put = self.files.type_name in WHOLE_PUTS
        temporary = path if put else f"{self.path}/{temporary_name(Path(name)).name}"
        try:
            whole = pa.memory_map(str(content)).read_buffer() if isinstance(content, Path) else content
            file = self.files.open_output_stream(temporary)
            file.write(whole)  # at once: a stop between two parts would leave a file that looks complete
            file.close()
            if not put:
                self.files.move(temporary, path)
        except OSError as error:
            raise _refusal(self / name, "written", error) from error

    def make(self) -> None:
        """Make the folder, where folders are made.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            if self.files.type_name != "s3":  # of which a bucket would be made
                self.files.create_dir(self.path, recursive=True)
            if not self.remote and not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError("no permission")
        except OSError as error:
            raise _refusal(str(self), "written", error) from error

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            with self.files.open_input_stream(f"{self.path}/{name}") as file:
                return file.read()
        except OSError as error:
            raise _refusal(self / name, "read", error) from error

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, and the folder if they were the last."""
        for name in names:
            self.files.delete_file(f"{self.path}/{name}")
        if not any(self.list()):
            self.files.delete_dir(self.path)


def folder_of(source: str) -> tuple[Folder, str]:
    """Return the folder of a file, and its name."""
    address, question, settings = source.partition("?") if is_address(source) else (source, "", "")
    parent, _, name = address.rpartition("/")
    return _folder(parent + question + settings), name


@functools.lru_cache(maxsize=64)
def _folder(text: str) -> Folder:
    return Folder(text)  # connects


def find_sources(sources: Sequence[str]) -> tuple[list[InputFile], list[str]]:
    """Find the image files of folders, files and patterns, wherever they are.

    Returns:
        Those that exist, and messages about those that do not.

    Raises:
        FileError: There is none at all.
    """
    local = [source for source in sources if not is_address(source)]
    found: list[InputFile] = []
    not_found: list[str] = []
    for source in sources:
        if is_address(source):
            try:
                found += _find_remote(source)
            except FileError as error:
                if len(sources) == 1:
                    raise
                not_found.append(str(error))
    if local:
        inputs = find_inputs(local)
        not_found += [result.error for result in inputs.not_found]
        found += [_local_file(path) for path in inputs.files]
    if not found:
        reasons = " ".join(not_found[:10])
        raise FileError("inputs", f"none of the {len(sources)} can be read: {reasons}", "Name image files.")
    return found, not_found


def _local_file(path: Path) -> InputFile:
    status = path.stat()
    return InputFile(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def _find_remote(source: str) -> list[InputFile]:
    """Find the image files of an address: a folder, one file, or a pattern in the last part."""
    source = CREDENTIALS.hide(ADDRESS.sub(r"\1://", source, count=1))
    address, question, settings = source.partition("?")
    parent, _, last = address.rstrip("/").rpartition("/")
    # "?" begins the settings, so a pattern cannot contain it.
    if MAGIC.search(parent):
        raise FileError(source, "has a pattern in a folder's name.", "Patterns may stand in the last part alone.")
    pattern = bool(MAGIC.search(last))
    folder = _folder((parent if pattern else address) + question + settings)
    infos = [info for info in folder.list() if not pattern or fnmatch.fnmatchcase(info.base_name, last)]
    if not infos and not pattern:  # a file
        folder, _ = folder_of(str(folder))
        infos = [folder.look(last)]
        infos = [info for info in infos if info.is_file]
    named = [info for info in infos if not info.base_name.startswith(".")]
    wanted = [info for info in named if PurePosixPath(info.base_name).suffix.lower() in suffixes()]
    if not wanted:
        raise FileError(source, f"holds no image file ({', '.join(suffixes())}).", "Check the address.")
    wanted.sort(key=lambda info: info.base_name)
    return [InputFile(folder / info.base_name, info.size or 0, info.mtime_ns or 0) for info in wanted]


def _open(shown: str) -> tuple[FileSystem, str]:
    """Return the file system of an address and the path on it: Arrow's own, else one of fsspec."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    address = CREDENTIALS.reveal(shown)
    scheme = address.partition("://")[0]
    try:
        return FileSystem.from_uri(address)
    except (ValueError, NotImplementedError, TypeError) as error:  # Arrow does not know it
        why = CREDENTIALS.censor(str(error))
    except OSError as error:
        raise _refusal(shown, "reached", error) from error
    import fsspec

    if scheme not in fsspec.available_protocols():
        raise ArgumentError("address", f"must be of a file system that Arrow or fsspec knows ({why})", shown)
    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ArgumentError("address", f"needs a module: {error}", shown, "Install it with pip.") from error
    return PyFileSystem(FSSpecHandler(files)), path


def _refusal(subject: str, verb: str, error: OSError) -> StorageError:
    words = CREDENTIALS.censor(str(error)).strip().rstrip(".") or type(error).__name__
    return StorageError(subject, f"cannot be {verb}: {words}.", "Check address, permissions and connection.")
