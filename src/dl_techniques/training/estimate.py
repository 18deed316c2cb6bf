"""Estimate of the cost of a run from a few of its steps."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dl_techniques.atomic import check_writable
from dl_techniques.datasets.batches import AHEAD
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.training.plan import Estimate, describe_plan, write_plan
from dl_techniques.training.progress import FEWEST, SECONDS, TIMED, WARMUP, peak_memory
from dl_techniques.training.recipe import Recipe
from dl_techniques.training.settings import TrainingConfig
from dl_techniques.training.trainer import recipe_of

if TYPE_CHECKING:
    from rich.console import Console


def estimate(recipe: Recipe) -> Estimate:
    """Train a few steps, validate a few images, and return the expected cost of the complete run."""
    import keras

    keras.utils.set_random_seed(recipe.config.seed)
    model = recipe.build()
    stage = next(stage for stage in recipe.stages() if stage.last > stage.first)
    batches = itertools.chain.from_iterable(stage.batches(0) for _ in itertools.count())  # a run may be shorter
    first = next(batches)
    for _ in range(WARMUP):
        model.train_on_batch(*first)
    step, waiting = time_steps(model.train_on_batch, batches)
    function = recipe.function(model)
    images = [recipe.validation[number] for number in range(min(2, len(recipe.validation)))]
    function(images[0].image[None])  # what is set up once is not timed
    start = time.perf_counter()
    for sample in images:
        function(sample.image[None])
    validation = (time.perf_counter() - start) / len(images) * len(recipe.validation) * recipe.passes
    epochs = recipe.config.steps // recipe.config.steps_per_epoch
    return Estimate(
        step_seconds=step,
        waiting=waiting,
        validation_seconds=validation,
        minutes=(recipe.config.steps * step + epochs * validation) / 60,
        memory_gb=peak_memory(),
    )


def time_steps(train: Callable[..., Any], batches: Iterator[tuple]) -> tuple[float, float]:
    """Return the seconds of a step and the share of them spent waiting for its batch.

    Batches that were made ahead are used up first: they would hide the wait.
    """
    for _ in range(AHEAD * (os.cpu_count() or 1)):
        next(batches)
    computing, start = [], time.perf_counter()
    while len(computing) < FEWEST or (len(computing) < TIMED and time.perf_counter() - start < SECONDS):
        batch = next(batches)
        before = time.perf_counter()
        train(*batch)
        computing.append(time.perf_counter() - before)
    passed = time.perf_counter() - start
    return passed / len(computing), max(0.0, 1 - sum(computing) / passed)


def plan_run(config: TrainingConfig, console: Console) -> Estimate:
    """Inspect the data, choose settings, time a few steps, and write the plan to `config.output`.

    Raises:
        FileError: Files are missing, broken or do not fit, or the output exists or cannot be written.
        ArgumentError: A setting does not fit the data.
    """
    output = config.output
    if output.suffix != ".toml":
        raise ArgumentError("output", "must be a file that ends in .toml", str(output))
    pictures = output.with_name(f"{output.stem}-targets.png")
    for path in (output, pictures):
        if path.exists():
            raise FileError(str(path), "exists already.", "Choose another --output.")
    check_writable(output.parent)
    recipe = recipe_of(config)(config, console)
    measured = estimate(recipe)
    describe_plan(recipe, console, measured)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_plan(output, recipe, measured)
    if rows := recipe.understood():
        from dl_techniques.images.display import contact_sheet
        from dl_techniques.images.files import Picture, write_image

        write_image(pictures, Picture(contact_sheet(rows)))
        console.print(f"how the {recipe.task.noun}s were understood: {pictures}", markup=False)
    return measured
