"""Masks of any common kind to class indices, and back to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dl_techniques.errors import FileError
from dl_techniques.images.files import open_image, write_images
from dl_techniques.images.formats import format_of
from dl_techniques.images.source import ImageSource, Picture
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes

# How the values of masks become numbers: as they are stored, grey values, indices of a palette or 0xRRGGBB; or as they
# look, all as grey values of 0 to 255, or all as 0xRRGGBB.
Reading = Literal["stored", "colours", "grey"]

INVERTED = "0 is white in the file"


def read_mask(path: str | os.PathLike, page: int | None = None, reading: Reading = "stored") -> np.ndarray:
    """Read a mask file; see `mask_from`."""
    with open_image(path) as source:
        return mask_from(source, page, reading)[0]


def mask_from(source: ImageSource, page: int | None = None, reading: Reading = "stored") -> tuple[np.ndarray, Picture]:
    """Read a mask as it was painted: grey values, palette indices, or colours as 0xRRGGBB.

    Args:
        source: The open file.
        page: Page, from 0; if `None`, it must have but one.
        reading: How values become numbers.

    Returns:
        `(height, width)`, int32; and what the file held, `INVERTED` among its notes where 0 is white.

    Raises:
        FileError: The file is broken, of a lossy format (whose values are not those that were painted), or holds
            several images, fractions, or transparency beside colours.
    """
    _check_lossless(source, page or 0)
    picture = source.read(page, "declared", raw_values=True)
    if source.is_inverted(page or 0):
        picture = replace(picture, notes=(*picture.notes, INVERTED))
    pixels, name = picture.pixels, str(source.path)
    _check_integers(source, pixels)
    if pixels.shape[2] == 3:
        if pixels.dtype != np.uint8:
            raise FileError(name, f"holds colours of type {pixels.dtype}.", "Save coloured masks with 8 bits.")
        values = pack(pixels)
    elif pixels.shape[2] == 1:
        values = pixels[..., 0].astype("int32")
    else:
        reason = f"holds {pixels.shape[2]} channels, neither grey values nor colours."
        raise FileError(name, reason, "If each channel is a label, use --mask-kind labels.")
    _check_alpha(source, values, picture.alpha)
    if picture.palette is not None and reading != "stored":
        if values.max() >= len(picture.palette):
            raise FileError(name, f"holds index {values.max()} of {len(picture.palette)} colours.", "Save it again.")
        values = pack(picture.palette)[values]
    elif pixels.shape[2] == 1:
        values = values * grey_factor(picture, reading)
    return values & 255 if reading == "grey" and pixels.dtype == np.uint8 else values, picture


def grey_factor(picture: Picture, reading: Reading) -> int:
    """Return by what grey values are multiplied in a reading."""
    spread = 255 // (2**picture.bits - 1) if picture.bits and reading != "stored" else 1
    return spread * 0x010101 if reading == "colours" and picture.pixels.dtype == np.uint8 else spread


def pack(colours: np.ndarray) -> np.ndarray:
    """Return colours, `(…, 3)`, uint8, as 0xRRGGBB, int32."""
    red, green, blue = np.moveaxis(colours.astype("int32"), -1, 0)
    return red << 16 | green << 8 | blue


def alpha_from(source: ImageSource, page: int | None, image: Picture | None) -> tuple[np.ndarray, Picture]:
    """Read the alpha of a file as a mask: 1 where a pixel is at least half opaque, 0 elsewhere.

    Args:
        source: The open file.
        page: Page, from 0; if `None`, it must have but one.
        image: What was read of the page already, if it was.

    Returns:
        `(height, width)`, uint8; and what the file held.

    Raises:
        FileError: The file is broken, or has no alpha.
    """
    picture = image if image is not None and image.alpha is not None else source.read(page, "declared")
    if picture.alpha is None:
        raise FileError(str(source.path), "has no alpha, which --mask-kind alpha takes for the mask.", "Leave it out.")
    opaque = 1.0 if picture.alpha.dtype.kind == "f" else np.iinfo(picture.alpha.dtype).max
    return (picture.alpha >= opaque / 2).astype("uint8"), picture


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
    pages = range(source.count) if page is None else [page]
    for number in pages:
        _check_lossless(source, number)
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


def _check_lossless(source: ImageSource, page: int) -> None:
    if lossy := source.lossy(page):
        reason = f"is a {lossy}: lossy compression changes the mask values."
        raise FileError(str(source.path), reason, "Save masks as PNG or TIFF without lossy compression.")


def _check_alpha(source: ImageSource, values: np.ndarray, alpha: np.ndarray | None) -> None:
    """Refuse a mask whose alpha tells more than its values do."""
    if alpha is None or (alpha == alpha[0, 0]).all():
        return
    levels = np.unique(alpha, return_inverse=True)[1].reshape(values.shape)
    if len(np.unique(values.astype("int64") << 32 | levels)) > len(np.unique(values)):
        remedy = "If alpha is the mask, use --mask-kind alpha; if not, save it without alpha."
        raise FileError(str(source.path), "holds alpha that differs where its values are the same.", remedy)


def _check_integers(source: ImageSource, pixels: np.ndarray) -> None:
    if pixels.dtype.kind == "f":
        integers = np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all() and np.abs(pixels).max() < 2**31
        if not integers:
            raise FileError(str(source.path), "holds fractions, not classes.", "Save masks as integers.")


def write_masks(path: Path, masks: Iterable[np.ndarray | Picture], classes: Classes, count: int | None = None) -> None:
    """Write class indices with the colours of the classes as a palette, or as the pages of a file.

    Labels, `(height, width, labels)`, become a page each; where there are several masks, each becomes a page with a
    channel for each label.

    Args:
        path: Where to.
        masks: Each is taken when those before it are written; as a `Picture` where the file shall say more.
        classes: Of the pixels.
        count: How many there are, where `masks` has no length.

    Raises:
        FileError: The format cannot hold them, or the file cannot be written.
    """
    if count is None:
        masks = list(masks)
        count = len(masks)
    pictures = (mask if isinstance(mask, Picture) else Picture(mask.reshape(*mask.shape[:2], -1)) for mask in masks)
    if classes.labels and count == 1:
        pictures = (
            replace(one, pixels=one.pixels[..., n : n + 1]) for one in pictures for n in range(one.pixels.shape[2])
        )
        count = classes.count
    row = format_of(path)
    if row is None or not (row.pages or row.palette):
        raise FileError(str(path), "is not a format for masks.", "Choose .png or .tif.")
    if count > 1 and not row.pages:
        raise FileError(str(path), f"cannot hold {count} masks.", "Choose .tif.")
    if row.palette:
        palette = np.array(classes.colours, "uint8")
        ignored = np.concatenate([palette, np.full((IGNORED + 1 - len(palette), 3), 64, "uint8")])
        pictures = (replace(one, palette=ignored if (one.pixels == IGNORED).any() else palette) for one in pictures)
    write_images(path, pictures, count)
