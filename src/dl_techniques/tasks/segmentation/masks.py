"""Masks of any common kind to class indices."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError
from dl_techniques.images import tiff
from dl_techniques.images.files import Picture, count_images, read_image, read_images, write_images
from dl_techniques.images.formats import FORMATS
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes


def read_mask(path: str | os.PathLike, page: int | None = None) -> np.ndarray:
    """Read a mask as it was painted: grey values, palette indices, or colours as 0xRRGGBB.

    Args:
        path: The file.
        page: Page of a TIFF, from 0; if `None`, it must have but one.

    Returns:
        `(height, width)`, int32.

    Raises:
        FileError: The file is broken, a JPEG (whose values are not those that were painted), or holds several images
            or fractions.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    try:
        if not _is_painted_tiff(path):
            with Image.open(path, formats=FORMATS) as file:
                if file.mode in ("P", "1") and getattr(file, "n_frames", 1) == 1:
                    return np.asarray(ImageOps.exif_transpose(file)).astype("int32")
    except OSError:
        pass  # `read_image` says it in the words of all files
    pixels = read_image(path, channels="declared", page=page).pixels
    _check_whole(path, pixels)
    if pixels.shape[2] == 1:
        return pixels[..., 0].astype("int32")
    if pixels.shape[2] != 3:
        reason = f"holds {pixels.shape[2]} channels, neither grey values nor colours."
        raise FileError(str(path), reason, "Where each channel is a label, say --mask-kind labels.")
    if pixels.dtype != np.uint8:
        raise FileError(str(path), f"holds colours of type {pixels.dtype}.", "Save coloured masks with 8 bits.")
    red, green, blue = np.moveaxis(pixels.astype("int32"), -1, 0)
    return red << 16 | green << 8 | blue


def read_labels(path: str | os.PathLike, ignored: Sequence[int] = (), page: int | None = None) -> np.ndarray:
    """Read a mask of labels that may overlap: one in each channel of an image, or on each page of a TIFF.

    Args:
        path: The file; a label is where its channel is not 0.
        ignored: Values; a pixel does not count where every channel holds one of them.
        page: Page of a stack whose channels are the labels, from 0; if `None`, all pages are of one image.

    Returns:
        `(height, width, labels)`, uint8: 1 where a label is, 0 where not, `IGNORED` in all where a pixel does not
        count.

    Raises:
        FileError: The file is broken, or a JPEG, or holds fractions, a palette, or pages that are no labels.
    """
    path = Path(path)
    try:
        _is_painted_tiff(path)
    except OSError:
        pass  # `read_image` says it in the words of all files
    if page is not None or count_images(path) == 1:
        pictures = [read_image(path, channels="declared", page=page)]
    else:
        pictures = list(read_images(path, channels="declared"))
        if len({picture.pixels.shape for picture in pictures}) > 1 or pictures[0].pixels.shape[2] > 1:
            raise FileError(str(path), "holds pages that are not one grey image for each label.", "Save it anew.")
    if any("palette expanded" in picture.notes for picture in pictures):
        raise FileError(
            str(path), "holds a palette, not a channel for each label.", "Save a TIFF with a page for each."
        )
    values = np.concatenate([picture.pixels for picture in pictures], axis=2)
    _check_whole(path, values)
    labels = (values != 0).astype("uint8")
    if ignored:
        labels[np.isin(values, ignored).all(axis=2)] = IGNORED
    return labels


def _is_painted_tiff(path: Path) -> bool:
    """Return whether a mask is a TIFF; raise `FileError` if it is a JPEG, `OSError` if it cannot be read."""
    with open(path, "rb") as head:
        magic = head.read(4)
    if magic[:3] == b"\xff\xd8\xff":
        reason = "is a JPEG: its values are not those that were painted."
        raise FileError(str(path), reason, "Save masks as PNG or TIFF.")
    return magic in tiff.MAGIC


def _check_whole(path: Path, pixels: np.ndarray) -> None:
    if pixels.dtype.kind == "f":
        whole = np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all() and np.abs(pixels).max() < 2**31
        if not whole:
            raise FileError(str(path), "holds fractions, not classes.", "Save masks as integers.")


def write_masks(path: Path, masks: Sequence[np.ndarray], classes: Classes) -> None:
    """Write class indices as a PNG with the colours of the classes as its palette, or as the pages of a TIFF.

    Labels, `(height, width, labels)`, become a TIFF, a page for each; where there are several masks, each becomes a
    page with a channel for each label.

    Raises:
        FileError: The format cannot hold them, or the file cannot be written.
    """
    from PIL import Image

    suffix = path.suffix.lower()
    if classes.labels and len(masks) == 1:
        masks = list(np.moveaxis(masks[0], 2, 0))
    if suffix in (".tif", ".tiff"):
        write_images(path, [Picture(mask if mask.ndim == 3 else mask[..., None]) for mask in masks])
        return
    if suffix != ".png" or len(masks) > 1:
        reason = f"cannot hold {len(masks)} masks." if len(masks) > 1 else "is no format for masks."
        raise FileError(str(path), reason, "Choose .tif." if len(masks) > 1 else "Choose .png or .tif.")
    image = Image.fromarray(masks[0])
    image.putpalette([value for colour in classes.colours for value in colour])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_file(path, buffer.getvalue())
