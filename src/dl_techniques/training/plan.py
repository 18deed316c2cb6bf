"""What a run will do and what it will take, told before it is done."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.atomic import write_file
from dl_techniques.data_files import checked_fields, read_toml
from dl_techniques.errors import FileError

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.training.recipe import Recipe

MAKE_ANOTHER = "Correct it, or make another with `convunext plan`."


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a run on this machine, from a few steps; memory is unknown on Windows."""

    step_seconds: float
    waiting: float
    validation_seconds: float
    minutes: float
    memory_gb: float | None

    def __str__(self) -> str:
        memory = "" if self.memory_gb is None else f" · {self.memory_gb:.1f} GB of memory"
        return (
            f"about {self.minutes:.0f} minutes: {self.step_seconds:.2f} s a step, {self.waiting:.0%} of it waiting for "
            f"data, {self.validation_seconds:.1f} s a validation{memory}"
        )


def describe_plan(recipe: Recipe, console: Console, measured: Estimate | None = None) -> None:
    """Print what was chosen, and what the run will take where that was measured."""
    from rich.table import Table

    config, training, validation = recipe.config, len(recipe.training), len(recipe.validation)
    passes = config.steps * config.batch_size / training
    table = Table("what", "choice", title=f"plan: {recipe.task.name}", title_justify="left")
    table.add_row("images", f"{training} to train on, {validation} to validate on")
    table.add_row("crops", f"{config.batch_size} of {config.patch}x{config.patch} pixels in a step")
    table.add_row("steps", f"{config.steps}: each image {passes:.1f} times; validation every {config.steps_per_epoch}")
    for name, choice in recipe.choices().items():
        table.add_row(name, choice)
    table.add_row("precision", config.precision)
    if measured is not None:
        table.add_row("estimated cost", str(measured))
    console.print(table)


def write_plan(path: Path, recipe: Recipe, measured: Estimate | None = None) -> None:
    """Write a plan as TOML: its settings, which `--plan` takes, and what was found and measured.

    Raises:
        FileError: The file cannot be written.
    """
    import tomli_w

    inspection = recipe.inspection
    content: dict[str, Any] = {
        "task": recipe.task.name,
        "settings": _plain({name: value for name, value in asdict(recipe.config).items() if name != "output"}),
        "found": {
            "training": len(recipe.training),
            "validation": len(recipe.validation),
            "channels": inspection.channels,
            "smallest_side": inspection.smallest,
            "notes": list(inspection.notes),
            **recipe.found(),
        },
        "chosen": dict(recipe.choices()),
    }
    if measured is not None:
        content["measured"] = _plain(asdict(measured))
    write_file(path, tomli_w.dumps(content).encode())


def check_plan(path: Path, task: str, config: type) -> None:
    """Refuse a file whose settings `--plan` cannot take.

    Args:
        path: The file.
        task: Name of the task that is planned or trained.
        config: Class of its settings.

    Raises:
        FileError: It is no TOML file, has no table `[settings]`, is of another task, or a setting has another name or
            type than the task's.
    """
    plan = read_toml(path, MAKE_ANOTHER)
    settings, planned = plan.get("settings"), plan.get("task", task)
    if not isinstance(settings, dict):
        raise FileError(str(path), "is not a plan: it has no table [settings].", MAKE_ANOTHER)
    if planned != task:
        raise FileError(str(path), f"is a plan of task {planned!r}, not of {task}.", MAKE_ANOTHER)
    hints = typing.get_type_hints(config)
    settings = {name.replace("-", "_"): value for name, value in settings.items()}  # flags are known by both
    checked_fields(settings, {field.name: hints[field.name] for field in fields(config)}, str(path), MAKE_ANOTHER)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as TOML has them: no null, no tuple."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
