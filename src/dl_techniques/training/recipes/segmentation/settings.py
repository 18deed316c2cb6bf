"""Settings of the training of segmenters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dl_techniques.errors import ArgumentError
from dl_techniques.training.settings import PairedConfig


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(PairedConfig):
    """Settings of the training of a segmenter.

    Attributes:
        masks: Folder or pattern of masks, each named like its image, all with the same ending or none: grey values,
            palette indices or colours, PNG or TIFF, stacks for stacks. Not with a CSV file.
        val_masks: Masks of `val_images`.
        mask_kind: `"classes"`: each mask value is a class; `"foreground"`: all but one value are one class, as in
            binary masks and instances; `"labels"`: each channel or page of a mask is a label, where it is not 0, and
            labels may overlap; `"alpha"`: the mask is the alpha of its file, or of the image without `masks`;
            `"auto"`: foreground for two values, and for more than 24 that are numbered objects.
        classes: Names of the classes, in the order of their mask values, or of the labels, in that of their channels.
        ignore: Mask values of pixels left out of training and scores; with labels, pixels whose channels all hold one.
        convnext_version: `"v1"`, whose receptive field is bounded, or `"v2"`, which pools over the whole image.
        loss: `"dice_ce"`: soft Dice and cross-entropy; `"dice"` or `"cross_entropy"` alone; `"focal"`, which emphasizes
            hard pixels; `"tversky"`, which detects more small objects, at the price of false alarms.
        anneal_supervision: Reduce the coarser outputs' weights in the loss linearly to zero over the run (default:
            constant weights).
    """

    summary: ClassVar[str] = (
        "Train a segmenter on images and masks: binary, instances as foreground, many classes, or labels that overlap."
    )

    masks: str | None = None
    val_masks: str | None = None
    mask_kind: Literal["auto", "classes", "foreground", "labels", "alpha"] = "auto"
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    convnext_version: Literal["v1", "v2"] = "v2"
    loss: Literal["dice_ce", "dice", "cross_entropy", "focal", "tversky"] = "dice_ce"
    anneal_supervision: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_masks is not None and self.val_images is None:
            raise ArgumentError("val_masks", "must come with val_images", self.val_masks)
