"""Settings of the training of models that restore images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dl_techniques.errors import ArgumentError
from dl_techniques.training.settings import PairedConfig


@dataclass(frozen=True, kw_only=True)
class RestorationConfig(PairedConfig):
    """Settings of the training of a model that restores images: sharp from blurred, clean from stained.

    Attributes:
        targets: Folder or pattern of target images, each of the size of its image and named like it, all with the same
            ending or none. Not with a CSV file.
        val_targets: Targets of `val_images`.
        loss: `"charbonnier"`, nearly the mean absolute error; `"mse"`, best for PSNR, smoother; or `"mae"`.
    """

    summary: ClassVar[str] = "Train a model that restores images, from pairs of image and target: deblurring, cleaning."

    targets: str | None = None
    val_targets: str | None = None
    blocks_per_level: int = 2
    loss: Literal["charbonnier", "mse", "mae"] = "charbonnier"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_targets is not None and self.val_images is None:
            raise ArgumentError("val_targets", "must come with val_images", self.val_targets)
