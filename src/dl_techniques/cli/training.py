"""`convunext train` and `convunext plan`."""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
import typing
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Toml

from dl_techniques.cli.backend import Backend, choose_backend
from dl_techniques.cli.terminal import terminal
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.settings import DeviceSettings

ONE = DeviceSettings()
Devices = Annotated[DeviceSettings, Parameter(name="*")]
PlanFile = Path | None  # read by `planned_settings`, before the settings are made

plan = App(name="plan", help="Look at your images, choose, and measure what a training will take, without training.")


@plan.command(name="segment")
def plan_segment(
    config: Annotated[SegmentationConfig, Parameter(name="*")], *, plan: PlanFile = None, backend: Backend = None
) -> None:
    """Look at images and masks, choose what the settings leave open, and measure a few steps.

    Writes a TOML file whose settings can be edited: `convunext train segment --plan plan.toml -o run/`.

    Args:
        config: Settings of the run.
        plan: TOML file with settings; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _plan(config, backend)


@plan.command(name="restore")
def plan_restore(
    config: Annotated[RestorationConfig, Parameter(name="*")], *, plan: PlanFile = None, backend: Backend = None
) -> None:
    """Look at images and targets, choose what the settings leave open, and measure a few steps.

    Writes a TOML file whose settings can be edited: `convunext train restore --plan plan.toml -o run/`.

    Args:
        config: Settings of the run.
        plan: TOML file with settings; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _plan(config, backend)


@plan.command(name="denoise")
def plan_denoise(
    config: Annotated[DenoisingConfig, Parameter(name="*")], *, plan: PlanFile = None, backend: Backend = None
) -> None:
    """Look at the images, and measure a few steps.

    Writes a TOML file whose settings can be edited: `convunext train denoise --plan plan.toml -o run/`.

    Args:
        config: Settings of the run.
        plan: TOML file with settings; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _plan(config, backend)


def _plan(config: DenoisingConfig | RestorationConfig | SegmentationConfig, backend: Backend) -> None:
    choose_backend(backend)
    from dl_techniques.training.estimate import plan_run
    from dl_techniques.training.recipes.denoising.recipe import DenoisingTask
    from dl_techniques.training.recipes.restoration.recipe import RestorationTask
    from dl_techniques.training.recipes.segmentation.recipe import SegmentationTask

    console = terminal()
    if isinstance(config, SegmentationConfig):
        plan_run(SegmentationTask, config, console)
    elif isinstance(config, RestorationConfig):
        plan_run(RestorationTask, config, console)
    else:
        plan_run(DenoisingTask, config, console)
    print(config.output.resolve())


train = App(name="train", help="Train a model on your own images, or go on with a run that was stopped.")


@train.command(name="segment")
def train_segment(
    config: Annotated[SegmentationConfig, Parameter(name="*")],
    *,
    devices: Devices = ONE,
    plan: PlanFile = None,
    backend: Backend = None,
) -> None:
    """Train a segmenter on images and masks: binary, instances as foreground, many classes, or labels that overlap.

    Looks at every file first and names what is wrong. A run that was stopped, by whatever, goes on with
    `convunext train --resume RUN` as if it had not been. Writes model.keras, the weights that were best on the
    validation images, and report.html, whose path is the last line printed.

    Args:
        config: Settings of the run.
        devices: What to train on.
        plan: TOML file with settings, from `convunext plan`; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _train(config, backend, devices)


@train.command(name="restore")
def train_restore(
    config: Annotated[RestorationConfig, Parameter(name="*")],
    *,
    devices: Devices = ONE,
    plan: PlanFile = None,
    backend: Backend = None,
) -> None:
    """Train a model that restores images, from pairs of what is and what it should be: deblurring, cleaning, any size.

    Looks at every file first and names what is wrong. A run that was stopped, by whatever, goes on with
    `convunext train --resume RUN` as if it had not been. Writes model.keras, the weights that were best on the
    validation images, and report.html, whose path is the last line printed.

    Args:
        config: Settings of the run.
        devices: What to train on.
        plan: TOML file with settings, from `convunext plan`; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _train(config, backend, devices)


@train.command(name="denoise")
def train_denoise(
    config: Annotated[DenoisingConfig, Parameter(name="*")],
    *,
    devices: Devices = ONE,
    plan: PlanFile = None,
    backend: Backend = None,
) -> None:
    """Train a blind denoiser on clean images; Gaussian noise of every level up to sigma is added on the way.

    Looks at every file first and names what is wrong. A run that was stopped, by whatever, goes on with
    `convunext train --resume RUN` as if it had not been. Writes model.keras, the inference model, and report.html,
    whose path is the last line printed.

    Args:
        config: Settings of the run.
        devices: What to train on.
        plan: TOML file with settings, from `convunext plan`; those of the command line go before them.
        backend: What Keras runs on; KERAS_BACKEND, or TensorFlow, if not given.
    """
    _train(config, backend, devices)


@train.default
def resume_training(*, resume: Path | None = None, devices: Devices = ONE, backend: Backend = None) -> None:
    """Train a model on your own images, or go on with a run that was stopped as if it had not been.

    Args:
        resume: Folder of the run to go on with.
        devices: What to train on.
        backend: What Keras runs on; if not given, KERAS_BACKEND, or what the run was begun on.
    """
    if resume is None:
        train.help_print([])
        return
    from dl_techniques.training.run_folder import stored_config, stored_versions, task_of

    task = task_of(resume)
    kinds = {"denoise": DenoisingConfig, "restore": RestorationConfig, "segment": SegmentationConfig}
    if task not in kinds:
        raise ConvUNextError(str(resume), f"is a run of task {task!r}, which this version does not know.", "Update.")
    if backend is None and "KERAS_BACKEND" not in os.environ and not devices.distributed:
        backend = typing.cast(Backend, stored_versions(resume).get("backend"))
    _train(stored_config(resume, kinds[task]), backend, devices, resume=True)


def _train(
    config: DenoisingConfig | RestorationConfig | SegmentationConfig,
    backend: Backend,
    devices: DeviceSettings,
    resume: bool = False,
) -> None:
    if devices.distributed and backend is None:
        backend = "jax"
    choose_backend(backend)
    from dl_techniques.training.distribution import on_devices

    console = terminal()
    try:
        with on_devices(devices, f"convunext train --resume {config.output}"):
            if isinstance(config, SegmentationConfig):
                from dl_techniques.training.recipes.segmentation.recipe import train_segmenter

                print(train_segmenter(config, console, resume).report)
            elif isinstance(config, RestorationConfig):
                from dl_techniques.training.recipes.restoration.recipe import train_restorer

                print(train_restorer(config, console, resume).report)
            else:
                from dl_techniques.training.recipes.denoising.recipe import train_denoiser

                print(train_denoiser(config, console, resume).report)
    except (KeyboardInterrupt, SystemExit):
        if (config.output / "checkpoints").is_dir():
            print(f"convunext: stopped; go on with: convunext train --resume {config.output}", file=sys.stderr)
        raise


def planned_settings(tokens: list[str]) -> list[Toml]:
    """Return where settings come from that the command line does not give: the file after `--plan`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plan", type=Path)
    try:
        path = parser.parse_known_args(tokens)[0].plan
    except argparse.ArgumentError:  # no file follows; the parser of the command says so
        return []
    if path is None:
        return []
    try:
        if "settings" not in tomllib.loads(path.read_text(encoding="utf-8")):
            raise ValueError("it has no table [settings]")
    except (OSError, ValueError) as error:
        raise FileError(str(path), f"is no plan: {error}.", "Make one with `convunext plan`.") from error
    return [Toml(path, root_keys=["settings"], use_commands_as_keys=False)]
