"""Damaged and edited plans, up to where a training begins: the settings are those of the file, or it is refused."""

from __future__ import annotations

import random
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w
from cyclopts import CycloptsError

from dl_techniques.cli import app
from dl_techniques.cli.training import planned_settings
from dl_techniques.tasks.registry import TASKS
from fuzz import Wrong, damaged
from fuzz_runs import ODD

KINDS = tuple(TASKS)
GIVEN = {"segment": {"masks": "masks"}, "restore": {"targets": "targets"}, "denoise": {}}


def plan_of(task: str) -> dict[str, Any]:
    """Return the plan of a task, as `convunext plan` writes it."""
    config = TASKS[task].config(images="images", output=Path("plan.toml"), **GIVEN.get(task, {}))
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items() if v is not None}
    del settings["output"]
    return {
        "task": task,
        "settings": settings,
        "found": {"training": 8, "validation": 2, "channels": 1, "notes": ["a note"]},
        "chosen": {"model": "depth 3"},
        "measured": {"step_seconds": 0.25, "minutes": 4.5},
    }


def edited(plan: dict[str, Any], rng: random.Random) -> bytes:
    """Return a plan with a value changed, added, or taken out, as a hand would do it."""
    table = plan["settings"] if rng.random() < 0.9 else plan
    name, value = rng.choice([*table, "other", "output"]), rng.choice(ODD)
    if value is None or rng.random() < 0.1:
        table.pop(name, None)
    elif rng.random() < 0.1:
        return tomli_w.dumps({**plan, "deep": 1}).replace("deep = 1", f"deep = {'[' * 50_000}").encode()
    else:
        table[name] = value
    return tomli_w.dumps(plan).encode()


def attempt(kind: str, seed: int, folder: Path) -> str:
    rng, path = random.Random(seed), folder / "plan.toml"
    plan = plan_of(kind)
    path.write_bytes(edited(plan, rng) if rng.random() < 0.6 else damaged(tomli_w.dumps(plan).encode(), rng))
    tokens = ["train", kind, "--plan", str(path), "--output", str(folder / "run")]
    app.config = planned_settings(tokens)
    try:
        _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError:
        return "refused"
    finally:
        app.config = None
    config = bound.arguments["config"]
    stated = tomllib.loads(path.read_text())["settings"]
    for field in fields(config):
        found = getattr(config, field.name)
        found = list(found) if isinstance(found, tuple) else found
        expected = stated.get(field.name, found if field.name in ("images", "output") else field.default)
        expected = list(expected) if isinstance(expected, tuple) else expected
        if field.name != "output" and found != expected:
            raise Wrong(f"{field.name} is {found!r}; the plan says {expected!r}")
    return "taken"
