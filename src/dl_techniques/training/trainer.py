"""Training on images: the frame that all tasks share."""

from __future__ import annotations

import importlib.util
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from dl_techniques import __version__
from dl_techniques.atomic import write_file
from dl_techniques.card import ModelCard, write_card
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.lazy import LazyDataset
from dl_techniques.datasets.pairs import Pair
from dl_techniques.engines.engine import Engine
from dl_techniques.images.display import contact_sheet
from dl_techniques.images.files import Picture, write_image
from dl_techniques.inference.memory import parse_memory
from dl_techniques.inference.tiled_function import bounded_function
from dl_techniques.training.distribution import (
    check_batches,
    is_writer,
    leave_to_writer,
    local_copy,
    model_scope,
    on_single_device,
)
from dl_techniques.training.fingerprint import compare_fingerprints, compare_versions, versions, write_fingerprints
from dl_techniques.training.plan import Plan, describe_plan, write_plan
from dl_techniques.training.run_folder import (
    CHECKPOINTS,
    best_so_far,
    check_run,
    epochs_since_best,
    naming_resume_command,
    open_run,
    read_log,
    stored_versions,
    write_split,
)
from dl_techniques.training.settings import TrainingConfig

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.training.loop import Stage

BEST, MODEL, PREVIEWS, PLAN = "best.keras", "model.keras", "previews", "plan.toml"
PREVIEWED = 3

Config = TypeVar("Config", bound=TrainingConfig)
Result = TypeVar("Result")


class SupervisedTask(ABC, Generic[Config, Result]):
    """What a run trains on, what it trains, and how it judges that.

    Attributes:
        name: Of the task, as the command line has it.
        score: Figure of `measure` whose highest value is the best; `None` if the last weights are what is wanted.
        applications: Times that `measure` applies the model to each image.
        activation: What the inference model ends in.
        config: Settings, nothing left open.
        inspection: Of all files.
        training: LazyDataset to train on.
        validation: LazyDataset to validate on.
    """

    name: ClassVar[str]
    score: ClassVar[str | None]
    applications: int = 1
    activation: str = "linear"
    config: Config
    inspection: Inspection
    training: LazyDataset
    validation: LazyDataset

    @property
    def followed(self) -> str | None:
        """Figure of `measure` that must rise if the run is not to end early."""
        return self.score

    def split(self, count: int, read: Callable[[Pair], Any]) -> None:
        """Train on the first so many of the inspected pairs, validate on the others.

        Args:
            count: Pairs to train on.
            read: Makes the sample of a pair.
        """
        pairs = self.inspection.pairs
        budget = self.inspection.decoded.budget  # shared: a sample takes the place of what it is made of
        self.training, self.validation = (
            LazyDataset(pairs[:count], read, budget),
            LazyDataset(pairs[count:], read, budget),
        )

    def whole(self, model: ConvUNextModel) -> Function:
        """Return a model as a function of whole images, which computes in tiles what would take too much memory.

        Raises:
            ArgumentError: The memory is too small for a tile.
        """
        from dl_techniques.models.convunext.function import keras_function

        engine = Engine(keras_function(model), model.input_channels, "the model", self.config.output, model)
        return bounded_function(engine, parse_memory(self.config.max_memory), self.inspection.largest)

    @abstractmethod
    def build(self) -> keras.Model:
        """Return the untrained model, compiled, its optimizer built."""

    def stages(self) -> list[Stage]:
        """Return the steps of the run, from the first to the last."""
        from dl_techniques.training.loop import Stage

        return [Stage(0, self.config.steps, self.batches)]

    def batch_sizes(self) -> list[int]:
        """Return the sizes of the run's batches."""
        return [typing.cast(int, self.config.batch_size)]

    @abstractmethod
    def batches(self, done: int = 0) -> Iterator[tuple]:
        """Yield the run's batches after so many of them; batch n depends on the settings and n alone."""

    @abstractmethod
    def measure(self, function: Function) -> dict[str, float]:
        """Return figures of the training model on the validation images."""

    @abstractmethod
    def show(self, function: Function, number: int) -> list[tuple[str, np.ndarray]]:
        """Return validation image `number` and what the training model makes of it, as pictures of one size."""

    @abstractmethod
    def finish(self, model: keras.Model, console: Console) -> Result:
        """Measure the weights that are wanted, write model, card and report, and return what came out.

        Args:
            model: As trained, with the averaged weights of the last step.
            console: Where to tell what came out.
        """

    def found(self) -> Mapping[str, Any]:
        """Return what was found in these data beside the inspection, as TOML can hold it."""
        return {}

    @abstractmethod
    def choices(self) -> Mapping[str, str]:
        """Return what was chosen for these data beside the settings, in words."""


def train_supervised(
    load: Callable[[Config, Console], SupervisedTask[Config, Result]], config: Config, console: Console, resume: bool
) -> Result:
    """Train, or go on with a run that was stopped, and return what came out.

    Args:
        load: Looks at the data and settles what the settings leave open.
        config: Settings; those of the first start when resuming.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.

    Raises:
        FileError: Files are missing, broken or do not fit, or the folder cannot be written or holds a run already.
        ArgumentError: A setting does not fit the data.
    """
    import keras
    from rich.console import Console

    from dl_techniques.training.callbacks import EarlyStop, Validation
    from dl_techniques.training.loop import fit_stages

    if is_writer():
        check_run(config.output, config, resume)
    else:
        console = Console(quiet=True)
    if is_writer() and resume:
        for change in compare_versions(config.output, stored_versions(config.output)):
            console.print(f"note: {change}", markup=False)
    task = load(config, console)
    if is_writer() and resume:
        compare_fingerprints(config.output, task.inspection)
    check_batches(task.batch_sizes())
    config = task.config
    watched = f"val_{task.score}" if task.score is not None else None
    keras.utils.set_random_seed(config.seed)
    with model_scope():
        made = [task.build()]
    with on_single_device():
        task.whole(typing.cast(Any, made[0]))  # refuses before anything is written what would not fit after an epoch
    run = nullcontext(config.output / CHECKPOINTS)
    if is_writer():
        run = open_run(config.output, task.name, config, resume, versions())
    with run as checkpoints, naming_resume_command(config.output):
        if is_writer():
            plan = plan_of(task)
            describe_plan(plan, console)
            write_plan(config.output / PLAN, plan)
            write_split(config.output, task.training.names, task.validation.names)
            write_fingerprints(config.output, task.inspection)
            if task.score is not None and (config.output / BEST).exists():
                _mend_best(task, console)
        validation = Validation(
            task.measure,
            task.score,
            config.output / BEST,
            best_so_far(config.output, watched) if watched is not None else -np.inf,
            task.activation,
            lambda function, epoch: _preview(task, function, epoch),
            task.whole,
        )
        board = []
        if is_writer() and importlib.util.find_spec("tensorboard") is not None:
            board.append(keras.callbacks.TensorBoard(config.output / "tensorboard", write_graph=False))

        model = fit_stages(
            lambda: made.pop() if made else task.build(),
            task.stages(),
            config.steps_per_epoch,
            checkpoints,
            [validation, *board],
            console,
            resume,
            EarlyStop(lambda: 0 < config.patience <= epochs_since_best(config.output, f"val_{task.followed}")),
        )
        model.optimizer.finalize_variable_values(model.trainable_variables)
        model = local_copy(model)
        leave_to_writer()
        with on_single_device():
            if task.score is not None:
                _ensure_best(task, model, console)
            return task.finish(model, console)


def _mend_best(task: SupervisedTask, console: Console) -> None:
    """Put a damaged file of the best weights aside, so that those of the steps to come take its place."""
    from dl_techniques.training.checkpoint import is_intact

    folder = task.config.output
    if is_intact(folder / BEST):
        return
    (folder / BEST).replace(folder / f"{BEST}.damaged")
    told = f"{folder / BEST}: damaged, put aside; it held the weights of {_best_step(task)}"
    if is_intact(folder / MODEL):  # what the run gave when it ended
        write_file(folder / BEST, (folder / MODEL).read_bytes())
        console.print(f"{told}. Taken from {MODEL}", markup=False)
    else:
        console.print(f"{told}, which are lost. The best of the steps to come take its place", markup=False)


def _ensure_best(task: SupervisedTask, model: keras.Model, console: Console) -> None:
    """Where the best weights are lost, take those of the last step in their place."""
    from dl_techniques.models.convunext.model import create_inference_model_from_training_model
    from dl_techniques.training.checkpoint import is_intact, save_model

    path = task.config.output / BEST
    if not is_intact(path):
        state = "damaged" if path.exists() else "not there"
        told = f"{path}: {state}; the weights of {_best_step(task)} are lost, those of the last step are taken"
        console.print(told, markup=False)
        changes = {"final_activation": task.activation, "dtype": "float32"}
        save_model(create_inference_model_from_training_model(model, **changes), path)


def _best_step(task: SupervisedTask) -> str:
    """Return in words when the best weights were, as the log has it."""
    values = [row[f"val_{task.score}"] for row in read_log(task.config.output)]
    if not values:
        return "an unknown step"
    best = max(values)
    return f"step {(values.index(best) + 1) * task.config.steps_per_epoch} ({task.score} {best:.4f})"


def plan_of(task: SupervisedTask) -> Plan:
    """Return what a run will do."""
    sizes = len(task.training), len(task.validation)
    return Plan(task.name, task.config, task.inspection, *sizes, task.choices(), task.found())


def load_best(config: TrainingConfig) -> ConvUNextModel:
    """Return the inference model with the weights that were best on the validation images."""
    import keras

    return keras.saving.load_model(config.output / BEST, compile=False, safe_mode=True)


def write_model(config: TrainingConfig, card: ModelCard) -> None:
    """Make the best model the model of the run, with its card."""
    write_file(config.output / MODEL, (config.output / BEST).read_bytes())
    write_card(config.output / MODEL, card)


def training_card(task: SupervisedTask) -> dict[str, Any]:
    """Return what a card says of the training, as arguments of `ModelCard`."""
    config = task.config
    return {
        "task": task.name,
        "channels": task.inspection.channels,
        "training": {
            "images": len(task.training),
            "steps": config.steps,
            "patch": config.patch,
            "patches_in_a_step": config.batch_size,
            "seed": config.seed,
        },
        "data_sha256": task.inspection.digest,
    }


def facts_of(task: SupervisedTask, model: keras.Model) -> dict[str, str]:
    """Return what a report tells of a run beside its figures."""
    import keras

    return {
        "model": f"{task.choices()['model']}, {model.count_params():,} parameters",
        "settings": ", ".join(f"{k}={v}" for k, v in asdict(task.config).items() if k != "output" and v is not None),
        "versions": f"convunext {__version__}, Keras {keras.__version__} on {keras.backend.backend()}",
        "files": f"{MODEL} (the inference model, with its card), log.csv, "
        f"metrics.json, split.csv, {PLAN}, config.json, {PREVIEWS}/, tensorboard/, checkpoints/",
    }


def curve_of(folder: Path, name: str) -> list[float]:
    """Return a figure of each epoch."""
    return [row[name] for row in read_log(folder)]


def _preview(task: SupervisedTask, function: Function, epoch: int) -> None:
    """Save what the model makes of the first validation images, every few epochs."""
    every = task.config.preview_every
    if every and (epoch + 1) % every == 0:
        folder = task.config.output / PREVIEWS
        folder.mkdir(exist_ok=True)
        for number in range(min(PREVIEWED, len(task.validation))):
            name = f"epoch-{epoch + 1:04d}-{task.validation.names[number]}.png"
            write_image(folder / name, Picture(contact_sheet([task.show(function, number)])))
