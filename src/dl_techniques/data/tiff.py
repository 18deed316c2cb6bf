"""TIFF files page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.errors import FileError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(
    path: Path, check_size: Callable[[tuple[int, int]], None], single: bool = False
) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """Yield the pages of a TIFF, without reduced copies, as `(height, width[, samples])`, and what was converted.

    Args:
        path: The file.
        check_size: Called with the width and height of each page before it is decoded.
        single: Refuse a file of several pages.

    Raises:
        FileError: The file is broken, of colours that are not read, or holds several pages.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages: list[Any] = [page for page in file.pages if not page.is_reduced] or list(file.pages)
            if single and len(pages) > 1:
                reason = f"holds {len(pages)} pages, not one image."
                raise FileError(str(path), reason, "Save the pages as files of their own.")
            for page in pages:
                check_size((page.imagewidth, page.imagelength))
                yield _decode(path, page)
    except (tifffile.TiffFileError, RuntimeError, KeyError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error


def _decode(path: Path, page: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    array, notes = page.asarray(), ()
    if page.samplesperpixel > 1 and page.planarconfig.name == "SEPARATE":
        array = np.moveaxis(array, 0, -1)
    if page.photometric.name == "PALETTE":
        array = np.moveaxis(page.colormap, 0, -1)[array]
        notes = ("palette expanded",)
    elif page.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    elif page.photometric.name not in ("MINISBLACK", "RGB"):
        raise FileError(str(path), f"is a {page.photometric.name} TIFF.", "Convert it to grey or RGB.")
    return np.uint8(255) * array if array.dtype == np.bool_ else array, notes
