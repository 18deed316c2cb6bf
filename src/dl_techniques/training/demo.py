"""The demo: segmentation of nuclei in the microscopy images that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dl_techniques.errors import ArgumentError, FileError, check_counts
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.training.trainer import TrainingResult

SHOWN = 3  # held-out images in preview.png


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo.

    Attributes:
        output: Folder for the model, the log and the report; it must not exist (default: a free name).
        epochs: Validations during training.
        steps: Training steps before each validation.
        batch_size: Crops in a step.
        crop: Height and width of a crop, in pixels, at most 256.
        filters: Channels of the model's finest level.
        seed: Seed of weights, crops and augmentation.
    """

    output: Path | None = None
    epochs: int = 10
    steps: int = 20
    batch_size: int = 8
    crop: int = 128
    filters: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "steps", "batch_size", "crop", "filters")
        if self.crop > 256:
            raise ArgumentError("crop", "must be at most 256, the size of the images", self.crop)
        if self.output is not None and self.output.exists():
            raise FileError(str(self.output), "exists already.", "Name a new folder, or move this one away.")

    def run_settings(self) -> SegmentationConfig:
        """Return the settings of the demo's run, of `convunext train segment`: a quarter of the images is held out."""
        from dl_techniques.datasets.samples import NUCLEI

        return SegmentationConfig(
            images=str(NUCLEI / "image"),
            masks=str(NUCLEI / "label"),
            mask_kind="foreground",
            classes=("background", "nucleus"),
            output=self.output or _free_name(Path("convunext-demo")),
            val_fraction=0.25,
            steps=self.epochs * self.steps,
            steps_per_epoch=self.steps,
            patch=self.crop,
            batch_size=self.batch_size,
            initial_filters=self.filters,
            learning_rate=3e-3,
            seed=self.seed,
        )


def run_demo(settings: SegmentationConfig, console: Console) -> TrainingResult:
    """Train a small segmenter on the nuclei that ship with the package, load it as a user does, and show what it finds.

    It is a run of `convunext train segment`: it can be resumed, and `convunext predict` takes its folder.

    Raises:
        FileError: The output folder cannot be written.
    """
    from dl_techniques.images.display import contact_sheet
    from dl_techniques.images.files import write_image
    from dl_techniques.images.source import Picture
    from dl_techniques.inference.predictor import Predictor
    from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
    from dl_techniques.training.trainer import MODEL, train

    recipes: list[SegmentationRecipe] = []

    def create_recipe(settings: SegmentationConfig, console: Console) -> SegmentationRecipe:
        recipes.append(SegmentationRecipe(settings, console))
        return recipes[0]

    result = train(settings, console, create_recipe=create_recipe)
    predictor = Predictor(result.folder / MODEL)  # as a user loads it
    samples = [recipes[0].validation[number] for number in range(min(SHOWN, len(recipes[0].validation)))]
    rows = [predictor.task.pictures(sample, predictor.network.apply(sample.image)[0]) for sample in samples]
    write_image(result.folder / "preview.png", Picture(contact_sheet(rows)))
    nucleus = result.figures["classes"][1]
    console.print(f"held-out images: Dice {nucleus['dice']:.3f}, IoU {nucleus['iou']:.3f} of the nuclei")
    return result


def _free_name(path: Path) -> Path:
    if not path.exists():
        return path
    number = 2
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
