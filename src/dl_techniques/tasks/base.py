"""What a task is: how images become inputs of a network, what its outputs mean, how they are scored and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dl_techniques.datasets.targets import ImageReader, TargetReader
from dl_techniques.errors import ArgumentError
from dl_techniques.images.display import to_display
from dl_techniques.images.files import write_images
from dl_techniques.images.formats import result_suffix
from dl_techniques.images.source import Picture

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.card import ModelCard
    from dl_techniques.datasets.inspection import Inspection
    from dl_techniques.datasets.pairs import Pair
    from dl_techniques.report import Table

Function = Callable[[np.ndarray], np.ndarray]
CaptionedPicture = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and largest magnitude of an image; the first two for tasks that standardize."""

    mean: float
    deviation: float
    largest: float

    @classmethod
    def of(cls, pixels: np.ndarray, standardizes: bool = True) -> Statistics:
        """Return the statistics of an image in memory; the deviation of an image of one value is 0."""
        low, high = float(pixels.min()), float(pixels.max())
        largest = max(abs(low), abs(high))
        if low == high or not standardizes:
            return cls(low, 0.0, largest)
        x = pixels.astype("float64")
        with np.errstate(over="ignore"):  # of what no network takes
            return cls(float(x.mean()), float(x.std()), largest)


@dataclass(frozen=True)
class Scaling:
    """Intensities of a file to those of a network: `(x − shift) / divisor`."""

    shift: float = 0.0
    divisor: float = 1.0

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return scaled samples, float32."""
        return ((pixels.astype("float64") - self.shift) / self.divisor).astype("float32")


@dataclass(frozen=True)
class Sample:
    """A named image, `(height, width, channels)`, float32, as the network takes it, and its target of the same size."""

    name: str
    image: np.ndarray
    target: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.image.nbytes + self.target.nbytes


@dataclass(frozen=True)
class Prediction:
    """The result of a model for an image.

    Attributes:
        pixels: The decoded result, `(height, width, samples)`.
        probabilities: Output of the network, `(height, width, outputs)`, float32; `None` where the artifact decodes it,
            and for restored images.
        uncertainty: Standard deviation over the symmetries of the square, the largest of all channels, `(height, width,
            1)`, float32.
        passes: Passes over tiles, see `inference.network`.
    """

    pixels: np.ndarray
    probabilities: np.ndarray | None
    uncertainty: np.ndarray
    passes: tuple[Any, ...] = ()


Page = tuple[Picture, Prediction]


@dataclass(frozen=True)
class Remarks:
    """Measured values by name, and warnings about a result, found without the truth."""

    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """An image and its result, `(height, width, 3)`, uint8; colour, name and share of the pixels of each class."""

    before: np.ndarray
    after: np.ndarray
    legend: tuple[tuple[str, str, float], ...] = ()


class Evaluation(ABC):
    """Scores of a model on images whose truth is known.

    Attributes:
        scores: One figure of each image, in the order of the samples; the highest is the best.
    """

    scores: tuple[float, ...]

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Return all figures as plain values, for `metrics.json` and the card."""

    @abstractmethod
    def logged(self) -> dict[str, float]:
        """Return the figures of a validation during training, by their short names."""

    @abstractmethod
    def headline(self) -> dict[str, str]:
        """Return the figures at the top of a report, by their names."""

    def tables(self) -> Sequence[Table]:
        """Return the tables of a report."""
        return ()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.csv`; none if the task has no table of figures."""
        return []

    def legend(self) -> Sequence[tuple[str, str]]:
        """Return colour and meaning of what the pictures of a report show."""
        return ()

    def describe(self, console: Console) -> None:
        """Print the figures."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.figures().items() if isinstance(value, float))
        console.print(f"validation: {shown}", markup=False)


class Task(ABC):
    """What is asked of a model.

    Attributes:
        name: As cards and the command line have it.
        noun: What comes out, for names of files.
        restores: Whether a result is an image in the unit of the input. Alpha and samples that are not finite then stay
            as they are, and a model of one channel takes the colours of an image one by one.
        extras: Options of `convunext predict` that the task has: `"probabilities"`, `"overlay"`, `"compare"`,
            `"inspect"`.
        activation: Last activation of the inference model.
        decoded: Whether an artifact decodes its output itself, to integers.
        standardizes: Whether images are scaled to mean 0 and variance 1.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    restores: ClassVar[bool] = False
    extras: ClassVar[frozenset[str]] = frozenset()

    decoded: bool = False
    standardizes: bool = False

    @property
    def activation(self) -> str:  # noqa: D102 - see above
        return "linear"

    @classmethod
    @abstractmethod
    def from_card(cls, card: ModelCard, source: str) -> Task:
        """Return the task of a model.

        Raises:
            FileError: The card, of `source`, lacks what the task needs.
        """

    @abstractmethod
    def card_fields(self) -> dict[str, Any]:
        """Return what the task writes into a card, as arguments of `ModelCard`."""

    # === Prediction ===

    @abstractmethod
    def scaling(self, statistics: Statistics, largest: float | None) -> Scaling:
        """Return how an image is scaled before it goes into the network.

        Args:
            statistics: Of the image.
            largest: Largest intensity that an artifact of 8-bit integers was calibrated for, `None` for others.

        Raises:
            ArgumentError: The intensities do not fit float32.
        """

    @abstractmethod
    def decode(self, output: np.ndarray, scaling: Scaling, dtype: np.dtype) -> np.ndarray:
        """Return the result of a network's output, or of a part of it, `(height, width, samples)`.

        Args:
            output: `(height, width, outputs)`; float32, or integers where the artifact decodes.
            scaling: Of the image.
            dtype: Of the image.
        """

    def with_holes(self, result: np.ndarray, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Return a result with the samples of the image, `(height, width, channels)`, that hold no data as they were.

        Args:
            result: From `decode`.
            pixels: The image.
            valid: Which of its samples hold data, bool.
        """
        return np.where(valid, result, pixels) if result.shape == pixels.shape else result

    def result_dtype(self, dtype: np.dtype) -> np.dtype:
        """Return the type of a result's samples, given that of the image's."""
        return dtype

    def result_samples(self, outputs: int) -> int:
        """Return the samples of a result's pixel, given the channels of the network's output."""
        return outputs

    def result_suffixes(self, source: Path) -> tuple[str, ...]:
        """Return the suffixes that the result of a file may have: the first for one image, the last for several."""
        return (result_suffix(source),)

    def check_extras(self, wanted: Iterable[str], source: str) -> None:
        """Raise `ArgumentError` for an option of `convunext predict` that the task, of a model `source`, lacks."""
        for name in wanted:
            if name not in self.extras:
                raise ArgumentError(name, f"is not an option of task {self.name!r}, the task of {source}", True)

    def write(self, output: Path, pages: Iterable[Page], count: int, extras: frozenset[str]) -> None:
        """Write results, and before them what else was asked for, so that where a result lies nothing is missing.

        Args:
            output: Where to.
            pages: The images and what the model makes of each; each is taken when those before it are written.
            count: How many there are.
            extras: Of the options in `Task.extras` those that were asked for.

        Raises:
            FileError: Something cannot be written, or does not fit the format.
        """
        write_images(output, (replace(picture, pixels=made.pixels) for picture, made in pages), count)

    def inspect(self, pixels: np.ndarray, apply: Function) -> Remarks:
        """Return what can be said, without the truth, of the result that `apply` gives for an image."""
        return Remarks()

    def facts(self) -> dict[str, str]:
        """Return what a page says of a model of this task, by what it is."""
        return {}

    def preview(self, pixels: np.ndarray, result: np.ndarray) -> Preview:
        """Return an image and its result to look at, both `(height, width, samples)`."""
        low, high = display_range(pixels)
        before, after = (as_rgb(to_display(x, low, high)) for x in (pixels, result))
        return Preview(before, after)

    # === Truth ===

    @property
    def reader(self) -> TargetReader:
        """What reads the targets of a data set; images, if a task says nothing else."""
        return ImageReader()

    def check_targets(self, inspection: Inspection, console: Console) -> None:  # noqa: B027 - nothing by default
        """Print what was found in the targets of a data set.

        Raises:
            FileError: They do not fit the task.
        """

    @abstractmethod
    def sample(self, pair: Pair, pixels: np.ndarray, target: np.ndarray, largest: float) -> Sample:
        """Return an image and its target as a sample.

        Args:
            pair: Their files.
            pixels: The image, as read.
            target: The target, as the task's reader gives it.
            largest: Largest magnitude of all floating-point images of the data set; 0 if there are none.

        Raises:
            FileError: The target does not fit the task.
        """

    @abstractmethod
    def evaluate(self, function: Function, samples: Iterable[Sample]) -> Evaluation:
        """Compare a model with the truth on whole images."""

    @abstractmethod
    def pictures(self, sample: Sample, output: np.ndarray) -> list[CaptionedPicture]:
        """Return a sample and what a model makes of it, as pictures of one size; the first caption names the sample."""

    # === 8-bit integers ===

    quantization_limit: ClassVar[float | None] = None  # what 8-bit integers may cost; `None`: the task measures nothing
    quantization_measure: ClassVar[str] = ""

    def quantization_input(self, image: np.ndarray, number: int) -> np.ndarray:
        """Return an image, `(1, height, width, channels)`, as the quantized model will meet it."""
        return image

    def quantization_loss(
        self, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], clean: Sequence[np.ndarray]
    ) -> float:
        """Return what 8-bit integers cost: outputs in float, in integers, and images before `quantization_input`."""
        raise ArgumentError("int8", f"cannot be measured for task {self.name!r}", True)


def display_range(pixels: np.ndarray) -> tuple[float, float]:
    """Return what is shown as black and as white: the range of 8 bits, otherwise nearly all finite samples."""
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.nanpercentile(np.where(np.isfinite(pixels), pixels, np.nan), (0.1, 99.9))
    return float(low), float(high)


def as_rgb(shown: np.ndarray) -> np.ndarray:
    """Return a picture, uint8, grey or RGB, as RGB."""
    return np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown
