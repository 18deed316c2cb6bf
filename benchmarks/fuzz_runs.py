"""Damaged and edited folders of runs, read as `convunext train --resume` does and, as `resume`, resumed; cards.

A run that goes on must end as it would have: the same state, log and scores. Only `steps` and `cooldown`, which may
change, and where the data lie, which `files.csv` checks, are taken as they stand.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dl_techniques.card import card_path, read_card
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.pairs import Pair
from dl_techniques.datasets.targets import PairFacts
from dl_techniques.tasks.registry import task_of
from dl_techniques.training.checkpoint import list_checkpoints, load_checkpoint, logged_digest, save_checkpoint
from dl_techniques.training.fingerprint import compare_fingerprints, write_fingerprints
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    LOG,
    PROLONGABLE,
    best_so_far,
    check_run,
    log_digest,
    log_epoch,
    open_run,
    read_log,
    stored_config,
    stored_versions,
    trim_log,
    write_split,
)
from fuzz import Wrong, damaged

KINDS = ("config", "log", "files", "checkpoint", "card", "resume")
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 10**9, 10**26, 0.5, -1.5, float("nan"), float("inf"), "", "x", "4", "a\0b",
    "\x1b[2J", [], [1], ["x"], {}, {"a": 1}, [[[]]],
)  # fmt: skip
CARD = {
    "schema_version": 2,
    "task": "segment",
    "channels": 1,
    "normalization": "standardize",
    "training": {"images": 8, "patch": 64},
    "export": {"format": "onnx", "sha256": {".onnx": "ab" * 32}},
    "classes": [
        {"name": "cell", "mask_value": 0, "colour": "#000000"},
        {"name": "nucleus", "mask_value": 7, "colour": "#e69f00"},
    ],
    "ignored_mask_values": [255],
    "every_other_value_is_foreground": False,
    "labels": False,
}
ENDED = ("model.keras", "model.keras.card.json", "metrics.json", "metrics.csv", "report.html")
SMALL = {
    "steps": 4, "steps_per_epoch": 2, "patch": 16, "final_patch": 16, "batch_size": 1, "held_out": 2, "depth": 2,
    "initial_filters": 4, "blocks_per_level": 1, "precision": "float32",
}  # fmt: skip


def facts(folder: Path) -> Inspection:
    """Return what is found in three images and their masks, which need not exist."""
    pairs = [Pair(folder / f"{name}.png", folder / f"{name}-mask.png") for name in ('q"uote,x', "=1+1", "new\nline")]
    return Inspection(tuple(PairFacts(pair, digest="cd" * 32, target_digest="ab" * 32) for pair in pairs), ())


def state() -> dict[str, np.ndarray]:
    return {"model/0/kernel": np.arange(12, dtype="float32").reshape(3, 4), "optimizer/0/iteration": np.array(4)}


def write_run(folder: Path) -> DenoisingConfig:
    """Write the folder of a run with two epochs, each with a checkpoint, without training."""
    config = DenoisingConfig(images=str(folder.parent / "images"), output=folder, **SMALL)
    with open_run(folder, "denoise", config, False, {"backend": "tensorflow", "keras": "3.15.1"}) as checkpoints:
        write_split(folder, ["a", "b"], ["c"])
        write_fingerprints(folder, facts(folder.parent))
        for epoch in range(2):
            log_epoch(folder / LOG, {"epoch": epoch, "loss": 0.5 / (1 + epoch), "val_psnr_25": 20.25 + epoch})
            save_checkpoint(checkpoints, 2 + 2 * epoch, state(), log_digest(folder))
    return config


def edited(content: bytes, rng: random.Random) -> bytes:
    """Return JSON or CSV with a value changed, taken out or added, as a hand would do it."""
    try:
        values = json.loads(content)
    except ValueError:
        return _edited_table(content, rng)
    name = rng.choice(list(values))
    kind = rng.choice(("set", "set", "set", "set", "delete", "add", "deep", "inner"))
    if kind == "delete":
        del values[name]
    elif kind == "deep":
        text = json.dumps({**values, name: "DEEP"})
        return text.replace('"DEEP"', "[" * 50_000 + "]" * 50_000).encode()
    elif kind == "inner":
        inner = rng.choice([value for value in values.values() if isinstance(value, dict)])
        inner[rng.choice([*inner, "other"])] = rng.choice(ODD)
    else:
        values[name if kind == "set" else "other"] = rng.choice(ODD)
    return json.dumps(values).encode("utf-16" if rng.random() < 0.05 else "utf-8")


def _edited_table(content: bytes, rng: random.Random) -> bytes:
    lines = [line.split(b",") for line in content.split(b"\n")]
    row = rng.choice(lines)
    row[rng.randrange(len(row))] = rng.choice(
        (b"", b"x", b"nan", b"-1", b"9", b'"', b"hello\0world", b"\xff\xfe", b"0.75")
    )
    if rng.random() < 0.3:
        lines.remove(row)
    return b"\n".join(b",".join(line) for line in lines)


def change(path: Path, rng: random.Random) -> None:
    """Damage or edit a file, put another in its place, or take it away."""
    content, kind = path.read_bytes(), rng.choice(("edit",) * 6 + ("damage",) * 6 + ("empty", "binary", "folder"))
    if kind == "folder":
        path.unlink()
        path.mkdir()
        return
    new = {"empty": lambda: b"", "binary": lambda: rng.randbytes(100), "damage": lambda: damaged(content, rng)}
    textual = path.suffix != ".npz"
    path.write_bytes(new[kind]() if kind in new else edited(content, rng) if textual else damaged(content, rng))


def attempt(kind: str, seed: int, folder: Path) -> str:
    rng = random.Random(seed)
    if kind == "resume":
        return _resume(rng, folder / "run")
    if kind == "card":
        return _card(rng, folder / "model.onnx")
    run = folder / "run"
    config = write_run(run)
    return ATTEMPTS[kind](run, config, rng)


def _config(run: Path, config: DenoisingConfig, rng: random.Random) -> str:
    change(run / CONFIG, rng)
    found = stored_config(run, DenoisingConfig)
    stored_versions(run)
    check_run(run, found, resume=True)
    different = {name for name, value in vars(found).items() if value != getattr(config, name)}
    if different - {*PROLONGABLE, *DATA}:
        raise Wrong(f"{sorted(different)} changed unnoticed")
    return "allowed change" if different else "the same"


def _log(run: Path, config: DenoisingConfig, rng: random.Random) -> str:
    before = read_log(run)
    change(run / LOG, rng)
    check_run(run, config, resume=True)
    best = best_so_far(run, "val_psnr_25")
    trim_log(run, 2, logged_digest(list_checkpoints(run / CHECKPOINTS)[0]))
    if read_log(run) != before or best != 21.25:
        raise Wrong("the log changed unnoticed")
    return "the same"


def _files(run: Path, config: DenoisingConfig, rng: random.Random) -> str:
    change(run / "files.csv", rng)
    compare_fingerprints(run, facts(run.parent))
    return "the same"


def _checkpoint(run: Path, config: DenoisingConfig, rng: random.Random) -> str:
    newest, older = list_checkpoints(run / CHECKPOINTS)
    change(newest, rng)
    if rng.random() < 0.3:
        change(older, rng)
    step, found, torn = load_checkpoint(run / CHECKPOINTS)
    if any(not np.array_equal(found[name], value) for name, value in state().items()):
        raise Wrong("the state changed unnoticed")
    return "an older state, and said" if torn and step == 2 else "the same"


def _card(rng: random.Random, model: Path) -> str:
    path = card_path(model)
    path.write_text(json.dumps(CARD))
    change(path, rng)
    card = read_card(model)
    task_of(card, str(model)).facts()
    return "taken"


ATTEMPTS = {"config": _config, "log": _log, "files": _files, "checkpoint": _checkpoint}


# === whole runs, seconds each ===


@cache
def begun() -> tuple[Path, dict[str, Any]]:
    """Train a small denoiser; return the folder of the run as it was after its first epoch, and how it ended."""
    from rich.console import Console

    from dl_techniques.training.trainer import train

    folder = Path(tempfile.mkdtemp(prefix="fuzz-runs-"))
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ('q"uote,x', "=1+1", "c", "d", "e"):
        pixels = np.kron(rng.integers(0, 200, (4, 4)), np.ones((6, 6))) + rng.integers(0, 30, (24, 24))
        Image.fromarray(pixels.astype("uint8")).save(folder / "images" / f"{name}.png")
    config = DenoisingConfig(images=str(folder / "images"), output=folder / "run", **SMALL)
    train(config, Console(quiet=True))
    ended = _ended(config.output)
    list_checkpoints(config.output / CHECKPOINTS)[0].unlink()
    for name in ENDED:
        (config.output / name).unlink(missing_ok=True)
    trim_log(config.output, 1)
    return config.output, ended


def _ended(run: Path) -> dict[str, Any]:
    step, found, _ = load_checkpoint(run / CHECKPOINTS)
    return {"step": step, "log": read_log(run), "scores": json.loads((run / "metrics.json").read_text()), **found}


def _resume(rng: random.Random, run: Path) -> str:
    from dl_techniques.cli.training import resume_training

    base, expected = begun()
    shutil.copytree(base, run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    chosen = rng.choice([run / CONFIG, run / LOG, run / "files.csv", *list_checkpoints(run / CHECKPOINTS), *files])
    change(chosen, rng)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        resume_training(resume=run)
    found = _ended(run)
    if found["step"] != expected["step"]:
        return "allowed change"
    for name, value in expected.items():
        if not np.array_equal(found[name], value):
            raise Wrong(f"{chosen.name} was changed, and {name} is another; said: {said.getvalue()[:200]!r}")
    return "the same"
