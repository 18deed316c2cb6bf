"""Interface between the training frame and a task: data, model, loss, batches, evaluation."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.lazy import LazyDataset
from dl_techniques.datasets.pairs import Pair
from dl_techniques.engines.engine import Engine
from dl_techniques.inference.memory import parse_memory
from dl_techniques.inference.tiled_function import tiled_function
from dl_techniques.tasks.base import CaptionedPicture, Evaluation, Function, Task
from dl_techniques.training.settings import TrainingConfig

if TYPE_CHECKING:
    import keras

    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.training.loop import Stage

Config = TypeVar("Config", bound=TrainingConfig)
TaskType = TypeVar("TaskType", bound=Task)


class Recipe(ABC, Generic[Config, TaskType]):
    """Data, model, loss and batches of a run.

    The constructor takes the settings and a console, inspects the data and resolves open settings.

    Attributes:
        title: Heading of the report.
        score: Logged metric whose highest value selects the weights; `None` to take the last ones.
        passes: How often an evaluation applies the model to each image.
        config: Settings, all resolved.
        task: What the model's outputs mean.
        inspection: What was found in the files.
        training: Samples to train on.
        validation: Samples to validate on.
    """

    title: ClassVar[str]
    score: ClassVar[str | None]
    passes: int = 1
    config: Config
    task: TaskType
    inspection: Inspection
    training: LazyDataset
    validation: LazyDataset

    @property
    def monitored(self) -> str | None:
        """Logged metric of early stopping; higher is better."""
        return self.score

    def split(self) -> None:
        """Make the samples of the inspected pairs."""
        pairs, count = self.inspection.pairs, self.inspection.training
        budget = self.inspection.decoded.budget  # shared with what the inspection read
        self.training = LazyDataset(pairs[:count], self.read, budget)
        self.validation = LazyDataset(pairs[count:], self.read, budget)

    def read(self, pair: Pair) -> Any:
        """Return the sample of a pair."""
        return self.task.sample(pair, *self.inspection.read(pair), self.inspection.largest_float)

    def function(self, model: ConvUNextModel) -> Function:
        """Return a model as a function of images of any size; large ones are computed in tiles.

        Raises:
            ArgumentError: The memory is too small for a tile.
        """
        from dl_techniques.models.convunext.function import keras_function

        engine = Engine(keras_function(model), model.input_channels, "the model", self.config.output, model)
        return tiled_function(engine, parse_memory(self.config.max_memory), self.inspection.largest)

    def activated(self, function: Function) -> Function:
        """Return the training model's function with the activation that the inference model ends in."""
        if self.task.activation == "linear":
            return function
        import keras

        activation = keras.activations.get(self.task.activation)
        return lambda batch: keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(function(batch))))

    @abstractmethod
    def build(self) -> keras.Model:
        """Return the untrained, compiled model, its optimizer built; its outputs are before the final activation."""

    def stages(self) -> list[Stage]:
        """Return the steps of the run, from the first to the last."""
        from dl_techniques.training.loop import Stage

        return [Stage(0, self.config.steps, self.batches)]

    def batch_sizes(self) -> list[int]:
        """Return the sizes of the run's batches."""
        return [typing.cast(int, self.config.batch_size)]

    @abstractmethod
    def batches(self, done: int = 0) -> Iterator[tuple]:
        """Yield the run's batches after the first `done`; batch n depends on the settings and n alone."""

    def evaluate(self, function: Function) -> Evaluation:
        """Return the scores of the inference model on the validation images."""
        return self.task.evaluate(function, self.validation)

    def pictures(self, function: Function, number: int) -> list[CaptionedPicture]:
        """Return validation image `number` and what the inference model makes of it, as pictures of one size."""
        sample = self.validation[number]
        return self.task.pictures(sample, function(sample.image[None])[0])

    @property
    def lead(self) -> str:
        """Sentence below the heading of the report."""
        return f"{len(self.validation)} validation images that the model did not see in training."

    def found(self) -> Mapping[str, Any]:
        """Return further findings about the data for the plan, as TOML values."""
        return {}

    def understood(self) -> list[list[CaptionedPicture]]:
        """Return rows of pictures, equally large, of how the targets were understood; none if that is plain."""
        return []

    @abstractmethod
    def choices(self) -> Mapping[str, str]:
        """Return further choices for the plan and the report as text, by name; `"model"` is required."""
