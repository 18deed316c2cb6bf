"""Damaged models and exports, with the digests of their files and without: what `fuzz.py models` tries.

With digests, what loads must give what the undamaged model gives. Without, an export must be refused unless it is
trusted, and is then run in a process of its own; what it gives may differ, for nothing says what is right.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from dl_techniques.card import card_path, read_card, write_card
from dl_techniques.engines import isolation
from dl_techniques.engines.formats import FORMATS, find_format
from dl_techniques.errors import FileError
from dl_techniques.inference.predictor import Predictor
from dl_techniques.models.convunext.presets import DIGESTS, METADATA, write_preset_card
from fuzz import Wrong, damaged

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SOURCES = Path(__file__).parents[1] / "tests" / "fixtures" / "version_0_1"
PIXELS = np.random.default_rng(0).uniform(size=(9, 13, 1)).astype("float32")
ARTIFACTS = {form.name: "denoise" + (form.suffix or "-saved") for form in FORMATS.values()}
SECONDS = 10.0  # that an artifact may take to compute so small an image

isolation.COMPUTING = SECONDS


def attempt(kind: str, seed: int, folder: Path) -> str:
    """Damage a file of a model and predict with what is left."""
    rng = random.Random(f"{kind}:{seed}")
    name, _, how = kind.partition(", ")
    path = MAKERS[name](name, folder) if name in MAKERS else _artifact(name, folder)
    if how:
        WITHOUT[how](path, rng)
    else:
        _damage(rng.choice(_files(path)), rng)
    trust = how == "no digest" and name in ARTIFACTS
    if trust:
        _refuse(path)
    found = Predictor(path, engine=None, task="denoise", trust=trust)(PIXELS).pixels
    if np.array_equal(found, _expected(name)):
        return "same"
    if not how:
        raise Wrong("another result than that of the undamaged model")
    if found.shape != PIXELS.shape or not np.isfinite(found).all():
        raise Wrong(f"a result of shape {found.shape}")
    return "other values"


@cache
def _expected(name: str) -> np.ndarray:
    source = {"keras": "denoise.keras", "preset": "preset"}.get(name)
    path = SOURCES / source if source else SOURCES / "exports" / ARTIFACTS[name]
    return Predictor(path, task="denoise")(PIXELS).pixels


def _refuse(path: Path) -> None:
    try:
        Predictor(path, task="denoise")
    except FileError:
        return
    raise Wrong("taken without a digest")


# === What is damaged ===


def _keras(name: str, folder: Path) -> Path:
    return Path(shutil.copy(SOURCES / "denoise.keras", folder))


def _preset(name: str, folder: Path) -> Path:
    """Copy a preset of version 0.1, with the digests that are stored now."""
    path = Path(shutil.copytree(SOURCES / "preset", folder / "preset"))
    write_preset_card(path, read_card(path))
    return path


def _artifact(name: str, folder: Path) -> Path:
    """Copy an export of version 0.1, with the digest of its card that is stored now."""
    for part in _files(SOURCES / "exports" / ARTIFACTS[name]):
        target = folder / part.relative_to(SOURCES / "exports")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(part, target)
    path = folder / ARTIFACTS[name]
    write_card(path, read_card(path))
    return path


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    form = find_format(path)
    return [path] if form is None else [*form.parts(path), card_path(path)]


def _damage(path: Path, rng: random.Random) -> None:
    path.write_bytes(damaged(path.read_bytes(), rng))


# === How ===


def _without_digest(path: Path, rng: random.Random) -> None:
    """Remove the digests, then damage any file."""
    if (metadata := path / METADATA).is_file():
        stored = json.loads(metadata.read_text())
        metadata.write_text(json.dumps({name: value for name, value in stored.items() if name != DIGESTS}))
    else:
        card = json.loads(card_path(path).read_text())
        del card["export"]["sha256"]
        card_path(path).write_text(json.dumps(card))
    _damage(rng.choice(_files(path)), rng)


def _with_new_sums(path: Path, rng: random.Random) -> None:
    """Damage a member of an archive and write its checksum anew, as a stranger would."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = rng.choice(list(members))
    members[name] = damaged(members[name], rng)
    with zipfile.ZipFile(path, "w") as new:
        for member, content in members.items():
            new.writestr(member, content)


MAKERS: dict[str, Callable[[str, Path], Path]] = {"keras": _keras, "preset": _preset}
WITHOUT = {"no digest": _without_digest, "new sums": _with_new_sums}
KINDS = (
    "keras", "keras, new sums", "preset", "preset, no digest",
    *(f"{name}{how}" for name in ARTIFACTS for how in ("", ", no digest")),
)  # fmt: skip
