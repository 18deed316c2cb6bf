"""Copies a model to machines that do not have it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from dl_techniques.card import card_path
from dl_techniques.engines.formats import artifact_files
from dl_techniques.engines.selection import EngineSelection


@dataclass(frozen=True)
class Shipment:
    """The files of a model and of its conversion, by path below a folder, and where both lie in it."""

    files: tuple[tuple[str, bytes], ...]
    model: str
    conversion: str

    @classmethod
    def of(cls, selection: EngineSelection) -> Shipment:
        """Read the files of a model."""
        sources = model_files(selection.path)
        files = [(f"model/{path.relative_to(selection.path.parent)}", path.read_bytes()) for path in sources]
        folder = selection.conversion.folder if selection.conversion else None
        if folder is not None:
            files += [(f"conversion/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]
        return cls(tuple(files), f"model/{selection.path.name}", "conversion" if folder else "")

    def unpack(self, selection: EngineSelection) -> EngineSelection:
        """Return the model on this machine, where the first worker that asks unpacks it."""
        digest = hashlib.sha256()
        for name, content in self.files:
            digest.update(name.encode() + b"\0" + content)
        folder = Path(tempfile.gettempdir()) / f"convunext-{os.getuid()}-{digest.hexdigest()[:24]}"
        if not folder.is_dir():
            staging = Path(tempfile.mkdtemp(prefix="convunext-"))  # no other user may write to it
            for name, content in self.files:
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                staging.rename(folder)
            except OSError:
                shutil.rmtree(staging)  # another worker was first
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} is not ours")
        conversion = selection.conversion and replace(selection.conversion, folder=folder / self.conversion)
        return replace(selection, path=folder / self.model, conversion=conversion)


def model_files(path: Path) -> list[Path]:
    """Return the files of a model: its own, those that belong to it, and its card."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in (*artifact_files(path), card_path(path)) if file.is_file()]
