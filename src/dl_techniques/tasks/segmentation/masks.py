"""Masks of any common kind to class indices, and back to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dl_techniques.errors import FileError
from dl_techniques.images.files import open_image, write_images
from dl_techniques.images.formats import format_of
from dl_techniques.images.source import ImageSource, Picture
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes


def read_mask(path: str | os.PathLike, page: int | None = None) -> np.ndarray:
    """Read a mask file; see `mask_from`."""
    with open_image(path) as source:
        return mask_from(source, page)[0]


def mask_from(source: ImageSource, page: int | None = None) -> tuple[np.ndarray, Picture]:
    """Read a mask as it was painted: grey values, palette indices, or colours as 0xRRGGBB.

    Args:
        source: The open file.
        page: Page, from 0; if `None`, it must have but one.

    Returns:
        `(height, width)`, int32; and what the file held.

    Raises:
        FileError: The file is broken, a JPEG (whose values are not those that were painted), or holds several images
            or fractions.
    """
    _check_lossless(source)
    picture = source.read(page, "declared", painted=True)
    pixels, name = picture.pixels, str(source.path)
    _check_integers(source, pixels)
    if pixels.shape[2] == 1:
        return pixels[..., 0].astype("int32"), picture
    if pixels.shape[2] != 3:
        reason = f"holds {pixels.shape[2]} channels, neither grey values nor colours."
        raise FileError(name, reason, "If each channel is a label, use --mask-kind labels.")
    if pixels.dtype != np.uint8:
        raise FileError(name, f"holds colours of type {pixels.dtype}.", "Save coloured masks with 8 bits.")
    red, green, blue = np.moveaxis(pixels.astype("int32"), -1, 0)
    return red << 16 | green << 8 | blue, picture


def read_labels(path: str | os.PathLike, ignored: Sequence[int] = (), page: int | None = None) -> np.ndarray:
    """Read a file of labels; see `labels_from`."""
    with open_image(path) as source:
        return labels_from(source, ignored, page)[0]


def labels_from(
    source: ImageSource, ignored: Sequence[int] = (), page: int | None = None
) -> tuple[np.ndarray, Picture]:
    """Read a mask of labels that may overlap: one in each channel of an image, or on each page.

    Args:
        source: The open file; a label is where its channel is not 0.
        ignored: Values; a pixel does not count where every channel holds one of them.
        page: Page of a stack whose channels are the labels, from 0; if `None`, all pages are of one image.

    Returns:
        `(height, width, labels)`, uint8: 1 where a label is, 0 where not, `IGNORED` in all where a pixel does not
        count; and what the first page held.

    Raises:
        FileError: The file is broken, or a JPEG, or holds fractions, a palette, or pages that are no labels.
    """
    _check_lossless(source)
    pages = range(source.count) if page is None else [page]
    pictures = [source.read(number, "declared") for number in pages]
    if len(pages) > 1 and {picture.pixels.shape for picture in pictures} != {(*pictures[0].pixels.shape[:2], 1)}:
        reason = "holds pages that are not one grey image for each label."
        raise FileError(str(source.path), reason, "Save it again.")
    if any("palette expanded" in picture.notes for picture in pictures):
        reason = "holds a palette, not a channel for each label."
        raise FileError(str(source.path), reason, "Save a TIFF with a page for each.")
    values = np.concatenate([picture.pixels for picture in pictures], axis=2)
    _check_integers(source, values)
    labels = (values != 0).astype("uint8")
    if ignored:
        labels[np.isin(values, ignored).all(axis=2)] = IGNORED
    return labels, pictures[0]


def _check_lossless(source: ImageSource) -> None:
    if not source.format.lossless:
        reason = f"is a {source.format.name}: lossy compression changes the mask values."
        raise FileError(str(source.path), reason, "Save masks as PNG or TIFF.")


def _check_integers(source: ImageSource, pixels: np.ndarray) -> None:
    if pixels.dtype.kind == "f":
        integers = np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all() and np.abs(pixels).max() < 2**31
        if not integers:
            raise FileError(str(source.path), "holds fractions, not classes.", "Save masks as integers.")


def write_masks(path: Path, masks: Iterable[np.ndarray], classes: Classes, count: int | None = None) -> None:
    """Write class indices with the colours of the classes as a palette, or as the pages of a file.

    Labels, `(height, width, labels)`, become a page each; where there are several masks, each becomes a page with a
    channel for each label.

    Args:
        path: Where to.
        masks: Each is taken when those before it are written.
        classes: Of the pixels.
        count: How many there are, where `masks` has no length.

    Raises:
        FileError: The format cannot hold them, or the file cannot be written.
    """
    if count is None:
        masks = list(masks)
        count = len(masks)
    if classes.labels and count == 1:
        masks, count = (label for mask in masks for label in np.moveaxis(mask, 2, 0)), classes.count
    row = format_of(path)
    if row is None or not (row.pages or row.palette):
        raise FileError(str(path), "is not a format for masks.", "Choose .png or .tif.")
    if count > 1 and not row.pages:
        raise FileError(str(path), f"cannot hold {count} masks.", "Choose .tif.")
    palette = np.array(classes.colours, "uint8") if row.palette else None
    pictures = (Picture(mask if mask.ndim == 3 else mask[..., None], palette=palette) for mask in masks)
    write_images(path, pictures, count)
