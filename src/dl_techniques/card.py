"""The card that travels with a model: what it is for, how it was trained and measured, what was certified."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError

MEMBER = "card.json"
LARGEST = 2**20


def card_path(model: Path) -> Path:
    """Return where the card of a model lies: in a preset's or SavedModel's folder, or beside the file."""
    return model / MEMBER if model.is_dir() else model.with_name(f"{model.name}.card.json")


def read_card(model: Path) -> dict[str, Any]:
    """Return the card of a model; an empty one if it has none.

    Args:
        model: A `.keras` file, which holds its card, or another file or folder, beside or in which it lies.

    Raises:
        FileError: There is a card and it is broken.
    """
    try:
        if zipfile.is_zipfile(model):
            with zipfile.ZipFile(model) as file:
                names = {item.filename: item.file_size for item in file.infolist()}
                if names.get(MEMBER, LARGEST + 1) > LARGEST:
                    return {}
                return _parse(model, file.read(MEMBER))
        path = card_path(model)
        return _parse(path, path.read_bytes()) if path.is_file() else {}
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(str(model), f"holds a card that cannot be read: {error}.", "Get the model again.") from error


def standardizes(card: dict[str, Any], source: Path) -> bool:
    """Return whether images must have mean 0 and variance 1 before they go into the model of a card.

    Raises:
        FileError: The card, of `source`, names another normalization.
    """
    name = card.get("normalization", "none")
    if name not in ("none", "standardize"):
        reason = f"has a card whose normalization is {name!r}, which this version does not know."
        raise FileError(str(source), reason, "Update convunext, or correct the card.")
    return name == "standardize"


def write_card(model: Path, card: dict[str, Any]) -> None:
    """Write the card of a model, whole or not at all; see `read_card` for where.

    Raises:
        FileError: It cannot be written; the model is as it was.
    """
    content = json.dumps(card, indent=2, ensure_ascii=False).encode()
    if zipfile.is_zipfile(model):
        write_file(model, _with_member(model, content))
    else:
        write_file(card_path(model), content)


def artifact_digests(artifact: Path) -> dict[str, str]:
    """Return the SHA-256 of what an exported model consists of, its card left out.

    Args:
        artifact: A file, whose weights may lie beside it, or a folder.

    Returns:
        By suffix of a file, which may be renamed, or by path in a folder.
    """
    if artifact.is_dir():
        inside = (path for path in sorted(artifact.rglob("*")) if path.is_file() and path != card_path(artifact))
        return {path.relative_to(artifact).as_posix(): file_digest(path) for path in inside}
    files = [artifact, *([artifact.with_suffix(".bin")] if artifact.suffix == ".xml" else [])]
    return {path.suffix: file_digest(path) for path in files}


def check_artifact(artifact: Path, card: dict[str, Any]) -> None:
    """Raise `FileError` if an exported model is not what its card tells; a card without digests tells nothing."""
    export = card.get("export")
    stated = export.get("sha256") if isinstance(export, dict) else None
    if stated is None:
        return
    try:
        found = artifact_digests(artifact)
    except OSError as error:
        raise FileError(str(artifact), f"cannot be read: {error}.", "Get it again, all of its files.") from error
    if found != stated:
        reason = "is damaged, or another than that of its card: the SHA-256 differs."
        raise FileError(str(artifact), reason, "Get it again, with its card.")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_member(model: Path, content: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(buffer, "w") as new:
        for item in old.infolist():
            if item.filename != MEMBER:
                new.writestr(item, old.read(item))
        new.writestr(MEMBER, content)
    return buffer.getvalue()


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        card = json.loads(content)
    except ValueError as error:
        raise FileError(str(path), f"holds a card that cannot be read: {error}.", "Get the model again.") from error
    return card if isinstance(card, dict) else {}
