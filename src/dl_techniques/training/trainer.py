"""A run from its data to a model, a card and a report: the frame that all tasks share."""

from __future__ import annotations

import importlib.util
import typing
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques import __version__
from dl_techniques.atomic import write_file
from dl_techniques.card import ModelCard, write_card
from dl_techniques.images.display import contact_sheet
from dl_techniques.images.files import write_image
from dl_techniques.images.source import Picture
from dl_techniques.inference.evaluation import write_evaluation
from dl_techniques.report import REPORT
from dl_techniques.tasks.base import Evaluation, Function
from dl_techniques.tasks.registry import TASKS
from dl_techniques.training.distribution import (
    check_batches,
    is_writer,
    leave_to_writer,
    local_copy,
    model_scope,
    on_single_device,
)
from dl_techniques.training.fingerprint import compare_fingerprints, compare_versions, versions, write_fingerprints
from dl_techniques.training.plan import describe_plan, write_plan
from dl_techniques.training.recipe import Recipe
from dl_techniques.training.run_folder import (
    CHECKPOINTS,
    best_so_far,
    check_run,
    epochs_since_best,
    logged_values,
    naming_resume_command,
    open_run,
    stored_versions,
    write_split,
)
from dl_techniques.training.settings import TrainingConfig

if TYPE_CHECKING:
    import keras
    from rich.console import Console

BEST, MODEL, PREVIEWS, PLAN = "best.keras", "model.keras", "previews", "plan.toml"
PREVIEWED = 3

CreateRecipe = Callable[[Any, "Console"], Recipe]


@dataclass(frozen=True)
class TrainingResult:
    """The inference model of a run, its scores on the validation images, and the folder of model, log and report."""

    model: keras.Model
    evaluation: Evaluation
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT

    @property
    def figures(self) -> dict[str, Any]:
        """All figures of the evaluation, as plain values."""
        return self.evaluation.figures()


def train(
    config: TrainingConfig, console: Console, resume: bool = False, create_recipe: CreateRecipe | None = None
) -> TrainingResult:
    """Train a model, or resume a run, and evaluate it on the validation images.

    Args:
        config: Settings, whose type says which task; those of the first start when resuming.
        console: Where to print.
        resume: Resume from the newest checkpoint in `config.output`.
        create_recipe: Makes the recipe of the settings; that of the task if not given.

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
    recipe = (create_recipe or recipe_of(config))(config, console)
    if is_writer() and resume:
        compare_fingerprints(config.output, recipe.inspection)
    check_batches(recipe.batch_sizes())
    config = recipe.config
    keras.utils.set_random_seed(config.seed)
    with model_scope():
        first = [recipe.build()]
    with on_single_device():
        recipe.function(typing.cast(Any, first[0]))  # fails before anything is written if no tile fits the memory
    run = nullcontext(config.output / CHECKPOINTS)
    if is_writer():
        run = open_run(config.output, recipe.task.name, config, resume, versions())
    with run as checkpoints, naming_resume_command(config.output):
        if is_writer():
            describe_plan(recipe, console)
            write_plan(config.output / PLAN, recipe)
            write_split(config.output, recipe.training.names, recipe.validation.names)
            write_fingerprints(config.output, recipe.inspection)
            if recipe.score is not None and (config.output / BEST).exists():
                _repair_best(recipe, console)
        validation = Validation(
            lambda function: recipe.evaluate(recipe.activated(function)).logged(),
            recipe.score,
            config.output / BEST,
            -np.inf if recipe.score is None else best_so_far(config.output, f"val_{recipe.score}"),
            recipe.task.activation,
            lambda function, epoch: _preview(recipe, recipe.activated(function), epoch),
            recipe.function,
        )
        board = []
        if is_writer() and importlib.util.find_spec("tensorboard") is not None:
            board.append(keras.callbacks.TensorBoard(config.output / "tensorboard", write_graph=False))

        model = fit_stages(
            lambda: first.pop() if first else recipe.build(),
            recipe.stages(),
            config.steps_per_epoch,
            checkpoints,
            [validation, *board],
            console,
            resume,
            EarlyStop(lambda: 0 < config.patience <= epochs_since_best(config.output, f"val_{recipe.monitored}")),
        )
        model.optimizer.finalize_variable_values(model.trainable_variables)
        model = local_copy(model)
        leave_to_writer()
        with on_single_device():
            return _finish(recipe, model, console)


def recipe_of(config: TrainingConfig) -> CreateRecipe:
    """Return the class of the recipe for these settings."""
    return next(entry.recipe for entry in TASKS.values() if entry.config is type(config))


def _finish(recipe: Recipe, model: keras.Model, console: Console) -> TrainingResult:
    """Evaluate the best or the last weights; write model, card and report."""
    config, folder = recipe.config, recipe.config.output
    wanted = _best_or_last(recipe, model, console)
    function = recipe.function(wanted)
    evaluation = recipe.evaluate(function)
    card = ModelCard(
        task=recipe.task.name,
        channels=recipe.inspection.channels,
        training={
            "images": len(recipe.training),
            "steps": config.steps,
            "patch": config.patch,
            "patches_in_a_step": config.batch_size,
            "seed": config.seed,
        },
        data_sha256=recipe.inspection.digest,
        metrics=evaluation.figures(),
        **recipe.task.card_fields(),
    )
    write_card(folder / MODEL, card)
    evaluation.describe(console)
    write_evaluation(
        folder,
        evaluation,
        lambda number: recipe.pictures(function, number),
        title=f"{recipe.title}: {folder.name}",
        lead=recipe.lead,
        facts=_facts(recipe, wanted),
        curves={
            "Loss in training": logged_values(folder, "loss"),
            **{
                f"{name} on the validation images": logged_values(folder, f"val_{name}") for name in evaluation.logged()
            },
        },
        understood=recipe.understood(),
    )
    return TrainingResult(wanted, evaluation, folder.resolve())


def _best_or_last(recipe: Recipe, model: keras.Model, console: Console) -> Any:
    """Write the inference model with the wanted weights as the model of the run, and return it."""
    import keras

    from dl_techniques.training.checkpoint import is_intact, save_model

    best, path = recipe.config.output / BEST, recipe.config.output / MODEL
    if recipe.score is None:
        last = _inference_model(recipe, model)
        save_model(last, path)
        return last
    if not is_intact(best):
        state = "damaged" if best.exists() else "missing"
        message = f"{best}: {state}; the weights of {_best_step(recipe)} are lost; those of the last step are used"
        console.print(message, markup=False)
        save_model(_inference_model(recipe, model), best)
    write_file(path, best.read_bytes())
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def _inference_model(recipe: Recipe, model: keras.Model) -> keras.Model:
    from dl_techniques.models.convunext.model import ConvUNextModel, create_inference_model_from_training_model

    if not isinstance(model, ConvUNextModel):
        return model
    changes = {"final_activation": recipe.task.activation, "dtype": "float32"}
    return create_inference_model_from_training_model(model, **changes)


def _repair_best(recipe: Recipe, console: Console) -> None:
    """Rename a damaged file of the best weights, and restore it from the final model where there is one."""
    from dl_techniques.training.checkpoint import is_intact

    folder = recipe.config.output
    if is_intact(folder / BEST):
        return
    (folder / BEST).replace(folder / f"{BEST}.damaged")
    message = f"{folder / BEST}: damaged, renamed; it held the weights of {_best_step(recipe)}"
    if is_intact(folder / MODEL):  # what the run gave when it ended
        write_file(folder / BEST, (folder / MODEL).read_bytes())
        console.print(f"{message}. Restored from {MODEL}", markup=False)
    else:
        console.print(f"{message}, which are lost. The best of the remaining steps replace them", markup=False)


def _best_step(recipe: Recipe) -> str:
    """Return in words when the best weights were, by the log."""
    values = logged_values(recipe.config.output, f"val_{recipe.score}")
    if not values:
        return "an unknown step"
    best = max(values)
    return f"step {(values.index(best) + 1) * recipe.config.steps_per_epoch} ({recipe.score} {best:.4f})"


def _facts(recipe: Recipe, model: keras.Model) -> dict[str, str]:
    """Return what a report says of a run beside its figures."""
    import keras

    settings = {k: v for k, v in asdict(recipe.config).items() if k != "output" and v is not None}
    return {
        "model": f"{recipe.choices()['model']}, {model.count_params():,} parameters",
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()),
        "versions": f"convunext {__version__}, Keras {keras.__version__} on {keras.backend.backend()}",
        "files": f"{MODEL} (the inference model, with its card), log.csv, "
        f"metrics.json, split.csv, {PLAN}, config.json, {PREVIEWS}/, tensorboard/, checkpoints/",
    }


def _preview(recipe: Recipe, function: Function, epoch: int) -> None:
    """Save pictures of the first validation images and their results every `preview_every` epochs."""
    every = recipe.config.preview_every
    if every and (epoch + 1) % every == 0:
        folder = recipe.config.output / PREVIEWS
        folder.mkdir(exist_ok=True)
        for number in range(min(PREVIEWED, len(recipe.validation))):
            name = recipe.validation.names[number].replace("/", "-")
            write_image(
                folder / f"epoch-{epoch + 1:04d}-{name}.png",
                Picture(contact_sheet([recipe.pictures(function, number)])),
            )
