"""What a run will do and what it will take, told before it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.atomic import write_file
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.training.settings import TrainingConfig

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.training.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        task: What is trained for.
        config: Settings, nothing left open.
        inspection: Of all files.
        training: Images to train on.
        validation: Images to validate on.
        choices: What else was chosen, in words.
        found: What else was found.
    """

    task: str
    config: TrainingConfig
    inspection: Inspection
    training: int
    validation: int
    choices: Mapping[str, str]
    found: Mapping[str, Any] = field(default_factory=dict)


def plan_of(recipe: Recipe) -> Plan:
    """Return what a run will do."""
    sizes = len(recipe.training), len(recipe.validation)
    return Plan(recipe.task.name, recipe.config, recipe.inspection, *sizes, recipe.choices(), recipe.found())


@dataclass(frozen=True)
class Estimate:
    """What a run will take on this machine, from a few steps of it.

    Attributes:
        step_seconds: Time of a step, data included.
        waiting: Share of that time that is spent waiting for data.
        validation_seconds: Time of a validation.
        minutes: Time of the whole run.
        memory_gb: Largest memory of the process so far, in GB; not known on Windows.
    """

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


def describe_plan(plan: Plan, console: Console, measured: Estimate | None = None) -> None:
    """Show what was chosen, and what the run will take where that was measured."""
    from rich.table import Table

    config = plan.config
    passes = config.steps * config.batch_size / plan.training  # type: ignore[operator] - settled
    table = Table("what", "choice", title=f"plan: {plan.task}", title_justify="left")
    table.add_row("images", f"{plan.training} to train on, {plan.validation} to validate on")
    table.add_row("crops", f"{config.batch_size} of {config.patch}x{config.patch} pixels in a step")
    table.add_row("steps", f"{config.steps}: each image {passes:.1f} times; validation every {config.steps_per_epoch}")
    for name, choice in plan.choices.items():
        table.add_row(name, choice)
    table.add_row("precision", config.precision)
    if measured is not None:
        table.add_row("will take", str(measured))
    console.print(table)


def write_plan(path: Path, plan: Plan, measured: Estimate | None = None) -> None:
    """Write a plan as TOML: its settings, which `--plan` takes, and what was found and measured.

    Raises:
        FileError: The file cannot be written.
    """
    import tomli_w

    content: dict[str, Any] = {
        "task": plan.task,
        "settings": _plain({name: value for name, value in asdict(plan.config).items() if name != "output"}),
        "found": {
            "training": plan.training,
            "validation": plan.validation,
            "channels": plan.inspection.channels,
            "smallest_side": plan.inspection.smallest,
            "notes": list(plan.inspection.notes),
            **plan.found,
        },
        "chosen": dict(plan.choices),
    }
    if measured is not None:
        content["measured"] = _plain(asdict(measured))
    write_file(path, tomli_w.dumps(content).encode())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as TOML has them: no null, no tuple."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
