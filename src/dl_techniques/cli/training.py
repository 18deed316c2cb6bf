"""`convunext train` and `convunext plan`, made from the registry of tasks."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.config import Toml

from dl_techniques.cli.backend import Backend, choose_backend
from dl_techniques.cli.terminal import terminal
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.tasks.registry import TASKS
from dl_techniques.training.plan import check_plan
from dl_techniques.training.settings import DeviceSettings, MovedData, TrainingConfig, moved

ONE, STAYED = DeviceSettings(), MovedData()
Devices = Annotated[DeviceSettings, Parameter(name="*")]
PlanFile = Path | None  # read by `planned_settings`, before the settings are made

SETTINGS = """
    Args:
        config: Settings of the run.
        devices: Devices to train on.
        plan: TOML file with settings, from `convunext plan`; flags of the command line take precedence.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise TensorFlow).
"""
TRAIN = """{summary}

    Inspects every file first and lists what is wrong. `convunext train --resume RUN` resumes an interrupted run, with
    the same result. Writes model.keras, the inference model, and report.html, whose path is the last line printed.
"""
PLAN = """Inspect the data, choose the settings that are not given, and measure a few steps.

    Writes a TOML file whose settings can be edited: `convunext train {name} --plan plan.toml -o run/`.
"""

plan = App(name="plan", help="Inspect your images, choose settings, and estimate time and memory of a training.")
train = App(name="train", help="Train a model on your own images, or resume an interrupted run.")


def add_tasks() -> None:
    """Give both commands a subcommand for each task."""
    for name, entry in TASKS.items():
        train.command(_command(name, entry.config, _train, TRAIN.format(summary=entry.config.summary)), name=name)
        plan.command(_command(name, entry.config, _plan, PLAN.format(name=name)), name=name)


def _command(name: str, config_type: type, run: Callable[..., None], text: str) -> Callable[..., None]:
    """Return the function of a subcommand, whose flags are the fields of a class of settings."""

    def train_task(config: Any, *, devices: Any = ONE, plan: Any = None, backend: Any = None) -> None:
        run(config, backend, devices)

    def plan_task(config: Any, *, plan: Any = None, backend: Any = None) -> None:
        run(config, backend)

    command = train_task if run is _train else plan_task
    hints = {"devices": Devices} if run is _train else {}
    command.__annotations__ = {
        "config": Annotated[config_type, Parameter(name="*")], **hints, "plan": PlanFile, "backend": Backend,
    }  # fmt: skip
    lines = [line for line in SETTINGS.splitlines() if "devices:" not in line or run is _train]
    command.__doc__ = text + "\n".join(lines)
    command.__name__ = name
    return command


def _plan(config: TrainingConfig, backend: Backend) -> None:
    choose_backend(backend)
    from dl_techniques.training.estimate import plan_run

    plan_run(config, terminal())
    print(config.output.resolve())


@train.default
def resume_training(
    *,
    resume: Path | None = None,
    data: Annotated[MovedData, Parameter(name="*")] = STAYED,
    devices: Devices = ONE,
    backend: Backend = None,
) -> None:
    """Train a model on your own images, or resume an interrupted run, with the same result.

    Args:
        resume: Folder of the run to resume.
        data: Where its data are now; the files must be the same.
        devices: Devices to train on.
        backend: Backend of Keras (default: KERAS_BACKEND, otherwise that of the run).
    """
    if resume is None:
        train.help_print([])
        return
    from dl_techniques.training.run_folder import CONFIG, RESTORE, stored_config, stored_versions, task_of

    task = task_of(resume)
    if task not in TASKS:
        raise ConvUNextError(str(resume), f"is a run of task {task!r}, which this version does not know.", "Update.")
    if backend is None and "KERAS_BACKEND" not in os.environ and not devices.distributed:
        stored = stored_versions(resume).get("backend")
        if stored not in (None, *(known := typing.get_args(typing.get_args(Backend)[0]))):
            reason = f"names the backend {stored!r}; this version knows {', '.join(known)}."
            raise FileError(str(resume / CONFIG), reason, RESTORE)
        backend = typing.cast(Backend, stored)
    config = moved(stored_config(resume, TASKS[task].config), data, f"convunext train --resume {resume}")
    _train(config, backend, devices, resume=True)


def _train(config: TrainingConfig, backend: Backend, devices: DeviceSettings, resume: bool = False) -> None:
    if devices.distributed and backend is None:
        backend = "jax"
    choose_backend(backend)
    from dl_techniques.training.distribution import on_devices
    from dl_techniques.training.trainer import train

    with printing_resume_command(config.output), on_devices(devices, f"convunext train --resume {config.output}"):
        print(train(config, terminal(), resume).report)


@contextlib.contextmanager
def printing_resume_command(folder: Path) -> Iterator[None]:
    """Print the command that resumes a run, if the run is interrupted in this context."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (folder / "checkpoints").is_dir():
            print(f"convunext: stopped; resume with: convunext train --resume {folder}", file=sys.stderr)
        raise


def planned_settings(tokens: list[str]) -> list[Toml]:
    """Return where settings come from that the command line does not give: the file after `--plan`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plan", type=Path)
    try:
        path = parser.parse_known_args(tokens)[0].plan
    except argparse.ArgumentError:  # no file follows; the parser of the command says so
        return []
    task = next((token for token in tokens if token in TASKS), None)
    if path is None or task is None:
        return []
    check_plan(path, task, TASKS[task].config)
    return [Toml(path, root_keys=["settings"], use_commands_as_keys=False)]


add_tasks()
