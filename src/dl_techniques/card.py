"""The card that travels with a model: what it is for, how it was trained and measured, what was certified."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError

MEMBER = "card.json"
ARCHIVE = ".keras"  # suffix of the files that hold their card
LARGEST = 2**20
SCHEMA_VERSION = 2  # 1, which says no number, is that of version 0.1
NORMALIZATIONS = ("none", "standardize")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a model beside its weights; the one place that knows the keys of `card.json`.

    Attributes:
        task: Name of the task, as the command line has it; `None` where that is not known.
        channels: Channels of the input.
        normalization: What is done to images before they go in: `"none"`, or `"standardize"`, to mean 0 and variance 1.
        value_range: Which intensities may come, in words.
        output: What comes out, in words.
        details: What the task itself wrote, such as its classes; the same keys lie flat in the file.
        training: Images, steps, patch and seed of the training.
        data_sha256: Digest of the images that it was trained on.
        metrics: What was measured after training.
        certificate: Measured scale-equivariance; see `export.certify`.
        export: Of an artifact: format, tiling, comparison with Keras and digests; see `export.export`.
        schema_version: Version of these keys.
    """

    task: str | None = None
    channels: int | None = None
    normalization: str = "none"
    value_range: str = ""
    output: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    export: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "card") -> ModelCard:
        """Return the card that a JSON object holds.

        Raises:
            FileError: A value is of another type, or a newer version of convunext wrote it.
        """
        version = values.get("schema_version", 1)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            reason = f"has a card of schema version {version!r}; this version of convunext reads {SCHEMA_VERSION}."
            raise FileError(source, reason, "Update convunext.")
        known: dict[str, Any] = {}
        for name, types in TYPES.items():
            if (value := values.get(name)) is None:
                continue
            if not isinstance(value, types):
                raise FileError(source, f"has a card whose {name} is {value!r}.", "Get the model again.")
            known[name] = value
        own = {*TYPES, "schema_version"}
        return cls(**known, details={name: value for name, value in values.items() if name not in own})

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes, without what is empty."""
        stated = {
            name: value for name, value in asdict(self).items() if name != "details" and value not in (None, "", {})
        }
        return {"schema_version": stated.pop("schema_version"), **stated, **self.details}

    @property
    def patch(self) -> int | None:
        """Height and width of the patches of training, in pixels; `None` where that is not known."""
        return self.training.get("patch")

    @property
    def exported(self) -> Mapping[str, Any]:
        """What was stated at the export; empty for other models."""
        return self.export or {}

    def standardizes(self, source: str) -> bool:
        """Return whether images must have mean 0 and variance 1 before they go into the model.

        Raises:
            FileError: The card, of `source`, names another normalization.
        """
        if self.normalization not in NORMALIZATIONS:
            reason = f"has a card whose normalization is {self.normalization!r}, which this version does not know."
            raise FileError(source, reason, "Update convunext, or correct the card.")
        return self.normalization == "standardize"


TYPES: dict[str, Any] = {
    **dict.fromkeys(("task", "normalization", "value_range", "output", "data_sha256"), str),
    **dict.fromkeys(("training", "metrics", "certificate", "export"), dict),
    "channels": int,
}


def card_path(model: Path) -> Path:
    """Return where the card of a model lies: in a preset's or SavedModel's folder, or beside the file."""
    return model / MEMBER if model.is_dir() else model.with_name(f"{model.name}.card.json")


def read_card(model: Path) -> ModelCard:
    """Return the card of a model; an empty one if it has none.

    Args:
        model: A `.keras` file, which holds its card, or another file or folder, beside or in which it lies.

    Raises:
        FileError: There is a card and it is broken.
    """
    try:
        if model.suffix == ARCHIVE and zipfile.is_zipfile(model):
            with zipfile.ZipFile(model) as file:
                names = {item.filename: item.file_size for item in file.infolist()}
                if names.get(MEMBER, LARGEST + 1) > LARGEST:
                    return ModelCard()
                return _parse(model, file.read(MEMBER))
        path = card_path(model)
        return _parse(path, path.read_bytes()) if path.is_file() else ModelCard()
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(str(model), f"holds a card that cannot be read: {error}.", "Get the model again.") from error


def write_card(model: Path, card: ModelCard | Mapping[str, Any]) -> None:
    """Write the card of a model, or what `ModelCard.from_dict` takes, whole or not at all; see `read_card` for where.

    Raises:
        FileError: It cannot be written; the model is as it was.
    """
    card = card if isinstance(card, ModelCard) else ModelCard.from_dict(card)
    content = json.dumps(card.as_dict(), indent=2, ensure_ascii=False).encode()
    if model.suffix == ARCHIVE and zipfile.is_zipfile(model):
        write_file(model, _with_member(model, content))
    else:
        write_file(card_path(model), content)


def artifact_digests(artifact: Path, companions: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of an artifact's files without its card, by suffix, or by path in a folder."""
    if artifact.is_dir():
        inside = (path for path in sorted(artifact.rglob("*")) if path.is_file() and path != card_path(artifact))
        return {path.relative_to(artifact).as_posix(): file_digest(path) for path in inside}
    return {suffix: file_digest(artifact.with_suffix(suffix)) for suffix in (artifact.suffix, *companions)}


def check_artifact(artifact: Path, card: ModelCard, companions: Iterable[str] = ()) -> None:
    """Raise `FileError` if an exported model is not what its card says; a card without digests says nothing."""
    stated = card.exported.get("sha256")
    if stated is None:
        return
    try:
        found = artifact_digests(artifact, companions)
    except OSError as error:
        raise FileError(str(artifact), f"cannot be read: {error}.", "Get it again, all of its files.") from error
    if found != stated:
        reason = "is damaged or does not belong to its card: the SHA-256 differs."
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


def _parse(path: Path, content: bytes) -> ModelCard:
    try:
        card = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileError(str(path), f"holds a card that cannot be read: {error}.", "Get the model again.") from error
    return ModelCard.from_dict(card, str(path)) if isinstance(card, dict) else ModelCard()
