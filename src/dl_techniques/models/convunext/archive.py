"""Check of `.keras` files before Keras opens them: a file from others may name any class to be built."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dl_techniques.errors import FileError

CONFIG = "config.json"
MEMBERS = {"metadata.json", CONFIG, "model.weights.h5", "card.json"}
MODEL = ("dl_techniques.models.convunext.model", "ConvUNextModel")
PARTS = ("keras.initializers", "keras.regularizers", "keras.activations", "keras.dtype_policies")  # modules
SINGLE = {("keras", "DTypePolicy"), ("builtins", "function")}
LARGEST_TEXT = 2**24  # bytes
LARGEST_EXPANSION, ALWAYS_ALLOWED = 100, 2**20  # Keras stores members uncompressed; other archives expand by less
REMEDY = "Load only model files that you trust; one that `convunext train` wrote is accepted."


def check_archive(path: Path) -> dict[str, Any]:
    """Return the config of a `.keras` file; refuse one that is no `ConvUNextModel` of plain parts: Keras builds any.

    Raises:
        FileError: It holds more than such a model has, expands beyond measure, or its config names other classes than
            the model, its initializers, regularizers, activation and precision, and what the caller registered.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as file:
        names = [member.filename for member in file.infolist()]
        if foreign := sorted(name for name in names if name not in MEMBERS or names.count(name) > 1):
            raise FileError(str(path), f"holds {foreign[0]!r}, which no model of this package has.", REMEDY)
        for member in file.infolist():
            size, stored = member.file_size, member.compress_size
            too_long = size > LARGEST_TEXT and member.filename.endswith(".json")
            if too_long or size > max(LARGEST_EXPANSION * stored, ALWAYS_ALLOWED):
                reason = f"holds {member.filename!r} of {size} bytes, stored in {stored}: too much for a model."
                raise FileError(str(path), reason, REMEDY)
        if CONFIG not in names:
            raise FileError(str(path), f"holds no {CONFIG}.", REMEDY)
        config = json.loads(file.read(CONFIG))
    root = config if isinstance(config, dict) else {}
    if (root.get("module"), root.get("class_name")) != MODEL:
        raise FileError(str(path), f"holds a {_name(root)}, not a ConvUNextModel.", REMEDY)
    for part in _parts(root.get("config")):
        if not _is_known(part):
            raise FileError(str(path), f"names {_name(part)} in its {CONFIG}, which is not allowed.", REMEDY)
    return root


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the configs of all objects that Keras would build."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _is_known(part: dict[str, Any]) -> bool:
    import keras

    module, name = part.get("module"), part["class_name"]
    if module in PARTS or (module, name) in SINGLE:
        return True
    registered = part.get("registered_name")
    return isinstance(registered, str) and registered in keras.saving.get_custom_objects()


def _name(part: dict[str, Any]) -> str:
    return ".".join(str(part[key]) for key in ("module", "class_name") if part.get(key)) or "model of no class"
