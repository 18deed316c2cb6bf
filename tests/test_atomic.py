"""Temporary names that nobody can foresee, and file systems that know less than a disk."""

import errno
import os
import threading

import pytest

from dl_techniques import atomic
from dl_techniques.atomic import staged_file, write_file
from dl_techniques.errors import FileError


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    """Not even one under the very name that is drawn."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".x.png.tmp").symlink_to(tmp_path / "mine")
    write_file(tmp_path / "x.png", b"result")
    assert (tmp_path / "x.png").read_bytes() == b"result" and not (tmp_path / "x.png").is_symlink()
    monkeypatch.setattr(atomic, "temporary_name", lambda path: tmp_path / ".x.png.tmp")
    with pytest.raises(FileError, match="cannot be written: File exists"):
        write_file(tmp_path / "x.png", b"other")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "x.png").read_bytes() == b"result"


def test_two_writers_of_one_file_hinder_each_other_in_nothing(tmp_path):
    path, meet = tmp_path / "x.png", threading.Barrier(2)

    def write(content: bytes) -> None:
        for _ in range(20):
            with staged_file(path) as file:
                meet.wait()
                file.write(content)

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folder_has_the_file_written(number, tmp_path, monkeypatch):
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    write_file(tmp_path / "x.png", b"result")
    assert (tmp_path / "x.png").read_bytes() == b"result"


def test_a_folder_that_cannot_be_synced_for_another_reason_is_told(tmp_path, monkeypatch):
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(FileError, match="cannot be written: Input/output error"):
        write_file(tmp_path / "x.png", b"result")
