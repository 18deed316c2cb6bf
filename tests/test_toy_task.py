"""What a new task costs: a folder, a recipe and a line in the registry. Nothing else of the package changes."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from dl_techniques.card import read_card
from dl_techniques.images.files import Picture, read_image, write_image
from toy_package import copy_package, run_commands

LINE = '    "brightness": TaskEntry("brightness", "Brightness"),\n'

TASK = '''
"""Brightness: the mean of an image and its target, at every pixel."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dl_techniques.tasks.base import Evaluation, Sample, Scaling, Task


@dataclass(frozen=True)
class BrightnessEvaluation(Evaluation):
    scores: tuple[float, ...]

    def figures(self):
        return {"images": len(self.scores), "error": -float(np.mean(self.scores))}

    def logged(self):
        return {"accuracy": float(np.mean(self.scores))}

    def headline(self):
        return {"error": f"{-np.mean(self.scores):.4f}"}


class BrightnessTask(Task):
    name: ClassVar[str] = "brightness"
    noun: ClassVar[str] = "brightness"

    @classmethod
    def from_card(cls, card, source):
        return cls()

    def card_fields(self):
        return {"output": "the mean intensity at every pixel, in [0, 1]"}

    def scaling(self, statistics, largest):
        return Scaling(0.0, 255.0)

    def decode(self, output, scaling, dtype):
        return np.broadcast_to(np.rint(255 * output.mean()).clip(0, 255), (*output.shape[:2], 1)).astype("uint8")

    def sample(self, pair, pixels, target, largest):
        scaled = Scaling(0.0, 255.0).apply(pixels)
        return Sample(pair.name, scaled, np.full((*pixels.shape[:2], 1), target.mean() / 255, "float32"))

    def evaluate(self, function, samples):
        errors = [abs(float(function(s.image[None]).mean()) - float(s.target.mean())) for s in samples]
        return BrightnessEvaluation(tuple(-error for error in errors))

    def pictures(self, sample, output):
        shown = [np.uint8(255 * np.clip(x[..., 0], 0, 1)) for x in (sample.image, output, sample.target)]
        return list(zip((sample.name, "prediction", "truth"), shown))
'''

SETTINGS = '''
"""Settings of the training of brightness."""

from dataclasses import dataclass
from typing import ClassVar

from dl_techniques.training.settings import PairedConfig


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(PairedConfig):
    """Settings.

    Attributes:
        targets: Images whose mean is learned.
    """

    summary: ClassVar[str] = "Train a model that tells how bright an image is."

    targets: str | None = None
'''

RECIPE = '''
"""Training of brightness."""

import numpy as np

from dl_techniques.datasets.batches import random_crop, seeded_batches
from dl_techniques.datasets.inspection import find_and_inspect
from dl_techniques.datasets.targets import ImageReader
from dl_techniques.tasks.brightness.task import BrightnessTask
from dl_techniques.training.auto_settings import resolve_settings
from dl_techniques.training.recipe import Recipe


class BrightnessRecipe(Recipe):
    title = "Brightness"
    score = "accuracy"

    def __init__(self, config, console):
        self.task = BrightnessTask()
        self.inspection = find_and_inspect(config, config.targets, None, console, self.task.reader)
        self.config = resolve_settings(config, self.inspection)
        self.split()

    def choices(self):
        return {"model": f"ConvUNext of {self.config.initial_filters} channels"}

    def build(self):
        from dl_techniques.models.convunext.model import ConvUNextModel
        from dl_techniques.training.loop import averaged_adamw
        from dl_techniques.training.schedule import WarmupCosine

        config = self.config
        model = ConvUNextModel(
            input_shape=(None, None, self.inspection.channels), output_channels=1, depth=config.depth,
            initial_filters=config.initial_filters, blocks_per_level=1, drop_path_rate=0.0, seed=config.seed,
        )
        model.compile(optimizer=averaged_adamw(WarmupCosine(config.learning_rate, config.steps), 0.9), loss="mse")
        model.optimizer.build(model.trainable_variables)
        return model

    def batches(self, done=0):
        config = self.config

        def pair(rng):
            sample = self.training[int(rng.integers(len(self.training)))]
            return random_crop(sample.image, sample.target, config.patch, rng)

        return seeded_batches(pair, config.steps, config.batch_size, config.seed, done)
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """The package with the task: two new folders and one new line."""
    folder = tmp_path_factory.mktemp("house")
    package = copy_package(folder)
    for room, files in (
        ("tasks/brightness", {"task.py": TASK}),
        ("training/recipes/brightness", {"settings.py": SETTINGS, "recipe.py": RECIPE}),
    ):
        (package / room).mkdir()
        for name, text in {"__init__.py": '"""Brightness."""\n', **files}.items():
            (package / room / name).write_text(textwrap.dedent(text).lstrip())
    registry = package / "tasks" / "registry.py"
    before = registry.read_text()
    registry.write_text(before.replace("TASKS = {\n", f"TASKS = {{\n{LINE}"))
    assert registry.read_text() == before.replace("TASKS = {\n", f"TASKS = {{\n{LINE}") != before
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 50 + 40 * number, (40, 48, 1)).astype("uint8")
        write_image(images / f"{number}.png", Picture(pixels))
    return package


def test_a_new_task_is_a_folder_a_recipe_and_a_line(house):
    folder = house.parent
    sources = ["--images", "images", "--targets", "images"]
    small = ["--steps", "4", "--steps-per-epoch", "2", "--depth", "2", "--initial-filters", "4", "--patch", "16"]
    shown, planned, trained, stopped, resumed, unknown, *done = run_commands(
        house,
        folder,
        ["train", "--help"],
        ["plan", "brightness", *sources, "-o", "plan.toml", *small],
        ["train", "brightness", *sources, "-o", "run", *small],
        ["rm", "run/model.keras"],  # as if it had been stopped before its end
        ["predict", "run", "images", "-o", "out2", "--engine", "keras"],
        ["train", "--resume", "run"],
        ["predict", "run", "images", "-o", "out2", "--overlay", "--engine", "keras"],
        ["predict", "run", "images", "-o", "out", "--engine", "keras"],
        ["evaluate", "run", *sources, "-o", "scores", "--engine", "keras"],
        ["export", "run", "-o", "model.xml"],
        ["predict", "model.xml", "images/3.png", "-o", "3.png"],
    )
    assert "brightness" in shown.output and "Train a model that tells how bright an image is." in shown.output
    assert [result.status for result in (planned, trained)] == [0, 0], trained
    assert read_card(folder / "run" / "model.keras").task == "brightness"
    assert "val_accuracy" in (folder / "run" / "log.csv").read_text() and (folder / "run" / "report.html").is_file()
    assert stopped.status == 2 and "has not ended" in stopped.errors
    assert [result.status for result in (resumed, *done)] == [0] * 5, done
    result = read_image(folder / "out" / "3.png").pixels
    assert result.shape == (40, 48, 1) and result.min() == result.max()
    assert json.loads((folder / "scores" / "metrics.json").read_text())["images"] == 6
    assert np.abs(read_image(folder / "3.png").pixels.astype(int) - result).max() <= 1
    assert unknown.status == 2 and "overlay" in unknown.errors
