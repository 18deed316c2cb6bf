"""TIFF files, by tifffile: their pages, and windows of a page too large for the memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dl_techniques.atomic import staged_file
from dl_techniques.errors import FileError
from dl_techniques.images.colours import cmyk_to_rgb
from dl_techniques.images.metadata import apply_orientation, tiff_extras
from dl_techniques.images.raster import TiffRaster, page_options
from dl_techniques.images.source import Decoded, ImageSource, Picture, reading_errors
from dl_techniques.images.tiff_limits import check_directories, guard

WIDER = {
    **dict.fromkeys(("int8", "int16", "float16"), "float32"),
    **dict.fromkeys(("int32", "uint32", "int64", "uint64"), "float64"),
}

# Where the pages of files lie that were opened before: to parse all of them for each would take long in a large stack.
_PLACES: dict[tuple[int, ...], tuple[int, ...]] = {}
LARGEST_PLACES = 64


class Source(ImageSource):
    """An open TIFF. Reduced copies are no pages."""

    @cached_property
    def _directories(self) -> Any:
        import tifffile

        status = os.fstat(self.file.fileno())
        known = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if known not in _PLACES:
            check_directories(self.path, self.file)
        self.file.seek(0)
        pages: Any = tifffile.TiffFile(self.file).pages
        places = _PLACES.get(known) or tuple(page.index for page in pages if not page.is_reduced) or range(len(pages))
        if len(_PLACES) >= LARGEST_PLACES:
            _PLACES.clear()
        _PLACES[known] = self._places = tuple(places)
        return pages

    def _page(self, number: int) -> Any:
        pages = self._directories
        return guard(pages[self._places[number]])

    def _count(self) -> int:
        return len(self._directories) and len(self._places)

    def _shape(self, page: int) -> tuple[int, int, int]:
        tags = self._page(page)
        return tags.imagelength, tags.imagewidth, 3 if tags.photometric.name == "PALETTE" else tags.samplesperpixel

    def _windows(self, cache: int) -> TiffRaster:
        return TiffRaster(self.path, self._page(0), cache)

    def _indices(self, page: int) -> Picture | None:
        tags, orientation = self._page(page), self._orientation(page)
        if tags.photometric.name == "PALETTE":
            colours = np.moveaxis(tags.colormap, 0, -1)
            palette = (colours >> 8 if colours.max() > 255 else colours).astype("uint8")
            indices = apply_orientation(tags.asarray(), orientation)
            return Picture(indices[..., None], palette=palette, orientation=orientation)
        bits = tags.bitspersample
        if tags.samplesperpixel == 1 and bits < 8 and tags.photometric.name in ("MINISBLACK", "MINISWHITE"):
            values = apply_orientation(tags.asarray().astype("uint8"), orientation)[..., None]
            values = 2**bits - 1 - values if self._is_inverted(page) else values
            return Picture(values, orientation=orientation, bits=bits)
        return None

    def _lossy(self, page: int) -> str:
        name = self._page(page).compression.name
        return f"TIFF with {name} compression" if re.search("JPE?G|JP2|WEBP", name) else ""

    def _is_inverted(self, page: int) -> bool:
        return self._page(page).photometric.name == "MINISWHITE"

    def _orientation(self, page: int) -> int:
        found = self._page(page).tags.valueof("Orientation", 1)
        return found if found in range(1, 9) else 1

    def _decode(self, page: int) -> Decoded:
        tags = self._page(page)
        array, notes, extras, alpha = tags.asarray(), [], tiff_extras(tags), _alpha(tags)
        if tags.samplesperpixel > 1 and tags.planarconfig.name == "SEPARATE":
            array = np.moveaxis(array, 0, -1)
        if tags.photometric.name == "PALETTE":
            array = np.moveaxis(tags.colormap, 0, -1)[array]
            notes.append("palette expanded")
        elif _is_cmyk(tags):
            profile = extras.pop("icc_profile", None)  # it describes the other colours
            colours, note = cmyk_to_rgb(array[..., :4], profile)
            array, alpha = np.concatenate([colours, array[..., 4:]], axis=-1), None if alpha is None else alpha - 1
            notes.append(note)
        elif tags.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        elif tags.photometric.name not in ("MINISBLACK", "RGB"):
            raise FileError(str(self.path), f"is a {tags.photometric.name} TIFF.", "Convert it to grey or RGB.")
        orientation = self._orientation(page)
        if orientation > 1:
            array = apply_orientation(array, orientation)
            notes.append("rotated upright according to its orientation tag")
            if orientation > 4:
                extras |= {key: extras[key][::-1] for key in ("dpi", "per_unit") if key in extras}
        if notes and extras.get("text", {}).get("Description", "").startswith(("ImageJ=", "<?xml")):
            del extras["text"]["Description"]  # it describes how the samples lay
        array, note = _as_floats(np.uint8(255) * array if array.dtype == np.bool_ else array)
        return Decoded(array, (*notes, *note), extras, alpha, orientation)


def write(file: BinaryIO, path: Path, name: str, pictures: Iterable[Picture]) -> None:
    """Write images as pages, compressed without loss."""
    import tifffile

    with tifffile.TiffWriter(file) as writer:
        for picture in pictures:
            _write_page(writer, picture)


@contextlib.contextmanager
def page_writer(path: Path) -> Iterator[Callable[[Picture], None]]:
    """Give a function that adds a page to a file, which appears when it is complete.

    Raises:
        FileError: It cannot be written.
    """
    import tifffile

    with staged_file(path) as file, tifffile.TiffWriter(file) as writer:

        def add(picture: Picture) -> None:
            with reading_errors(path, "written", "Leave it out."):
                _write_page(writer, picture)

        yield add


def _write_page(writer: Any, picture: Picture) -> None:
    array = picture.samples
    options = page_options(array.shape[2], picture.pixels.shape[2], picture.extras)
    writer.write(array[..., 0] if array.shape[2] == 1 else array, **options)


def _alpha(page: Any) -> int | None:
    """Return which sample is alpha, as the file says; samples beyond grey or RGB that it does not name are channels."""
    kinds = [kind.name for kind in page.extrasamples]
    first = page.samplesperpixel - len(kinds)
    return next((first + n for n, kind in enumerate(kinds) if kind in ("ASSOCALPHA", "UNASSALPHA")), None)


def _as_floats(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return samples of a type that is rare as floats that hold each of its values, and in words that this was done."""
    name = array.dtype.name
    wider = WIDER.get(name)
    if wider is None or (array.dtype.itemsize == 8 and array.size and np.abs(array.astype("float64")).max() >= 2**53):
        return array, ()
    return array.astype(wider), (f"{name} read as {wider} without loss",)


def _is_cmyk(page: Any) -> bool:
    """Return whether the samples of a page are four inks, and perhaps more, of 8 or 16 bits."""
    inks = page.photometric.name == "SEPARATED" and page.tags.valueof("InkSet", 1) == 1
    return inks and page.samplesperpixel >= 4 and page.dtype in (np.uint8, np.uint16)
