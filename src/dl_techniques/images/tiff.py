"""TIFF files, by tifffile: their pages, and windows of a page too large for the memory."""

from __future__ import annotations

import contextlib
import copy
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
from dl_techniques.images.metadata import apply_orientation, tiff_extras, turned_extras, without_declarations
from dl_techniques.images.raster import TiffRaster, page_options, white_value
from dl_techniques.images.source import Decoded, ImageSource, Picture, reading_errors
from dl_techniques.images.tiff_layout import Layout, plan_layout, subifd
from dl_techniques.images.tiff_limits import check_directories, guard
from dl_techniques.images.tiff_tags import valid_samples

WIDER = {
    **dict.fromkeys(("int8", "int16", "float16"), "float32"),
    **dict.fromkeys(("int32", "uint32", "int64", "uint64"), "float64"),
}

# Layouts of files that were opened before: to parse all pages of a large stack for each of them would take long.
_LAYOUTS: dict[tuple[int, ...], Layout] = {}
LARGEST_KNOWN = 64

JPEG = (6, 7)  # compressions of which the decoder gives RGB for YCbCr
INTEGERS = ("uint8", "uint16")  # of indices that have colours


class Source(ImageSource):
    """An open TIFF; see `tiff_layout` for what its images are."""

    @cached_property
    def _opened(self) -> tuple[Any, Layout]:
        import tifffile

        status = os.fstat(self.file.fileno())
        known = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if known not in _LAYOUTS:
            check_directories(self.path, self.file)
            self.file.seek(0)
            # OME-XML may name other files, which are not opened.
            layout = plan_layout(self.path, tifffile.TiffFile(self.file, name=self.path.name, _multifile=False))
            if len(_LAYOUTS) >= LARGEST_KNOWN:
                _LAYOUTS.clear()
            _LAYOUTS[known] = layout
        self.file.seek(0)
        return tifffile.TiffFile(self.file), _LAYOUTS[known]

    @property
    def _tiff(self) -> Any:
        return self._opened[0]

    @property
    def _layout(self) -> Layout:
        return self._opened[1]

    @cached_property
    def _images(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the planes of each image."""
        layout = self._layout
        apart = self.channels_apart and not layout.rows
        return tuple((number,) for number in range(len(layout.planes))) if apart else layout.groups

    @property
    def notes(self) -> tuple[str, ...]:
        with reading_errors(self.path):
            apart = self._images != self._layout.groups
            return (*self._layout.notes, *(("channels taken one by one",) if apart else ()))

    @property
    def is_coloured(self) -> bool:
        with reading_errors(self.path):
            return super().is_coloured and self._page(0).photometric.name not in ("MINISBLACK", "MINISWHITE")

    @property
    def can_read_windows(self) -> bool:
        return super().can_read_windows and len(self._images[0]) == 1

    def _page(self, number: int, channel: int = 0) -> Any:
        plane = self._layout.planes[self._images[number][channel]]
        page = self._tiff.pages[plane.page]
        if plane.subifd is not None:
            page = subifd(self._tiff, page, plane.subifd)
        if plane.shift:
            page = copy.copy(page)
            page.dataoffsets = tuple(place + plane.shift for place in page.dataoffsets)
        return guard(page)

    def _count(self) -> int:
        return len(self._images)

    def _shape(self, page: int) -> tuple[int, int, int]:
        planes, tags = len(self._images[page]), self._page(page)
        if self._layout.rows:
            return planes, tags.imagelength, tags.imagewidth
        samples = 3 if tags.photometric.name == "PALETTE" and not _is_measured(tags) else tags.samplesperpixel
        return tags.imagelength, tags.imagewidth, planes * samples

    def _windows(self, cache: int) -> TiffRaster:
        return TiffRaster(self.path, self._page(0), cache)

    def _indices(self, page: int) -> Picture | None:
        if len(self._images[page]) > 1:
            return None
        tags, orientation = self._page(page), self._orientation(page)
        if tags.photometric.name == "PALETTE" and tags.samplesperpixel == 1:
            indices = apply_orientation(tags.asarray(), orientation)
            return Picture(indices[..., None], palette=_palette(tags), orientation=orientation)
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

    def _samples(self, page: int) -> np.ndarray:
        """Return all samples of an image, `(height, width[, samples])`."""
        planes = [self._page(page, channel).asarray() for channel in range(len(self._images[page]))]
        if len(planes) > 1:
            return np.stack(planes, axis=0 if self._layout.rows else -1)
        tags = self._page(page)
        separate = tags.samplesperpixel > 1 and tags.planarconfig.name == "SEPARATE"
        return np.moveaxis(planes[0], 0, -1) if separate else planes[0]

    def _decode(self, page: int) -> Decoded:
        tags, array = self._page(page), self._samples(page)
        several = len(self._images[page]) > 1
        notes, extras, alpha = [*self.notes], tiff_extras(tags), _alpha(tags)
        valid = valid_samples(tags, array)
        name, same = tags.photometric.name, True  # samples as they lie in the file
        if name == "PALETTE" and _is_measured(tags):
            extras["colormap"] = tags.colormap
            notes.append("its colour table only shows the samples, which are grey values")
        elif name == "PALETTE":
            array, same = _palette(tags)[array], False
            notes.append("palette expanded")
        elif _is_cmyk(tags):
            profile = extras.pop("icc_profile", None)  # it describes the other colours
            colours, note = cmyk_to_rgb(array[..., :4], profile)
            array, alpha = np.concatenate([colours, array[..., 4:]], axis=-1), None if alpha is None else alpha - 1
            same = False
            notes.append(note)
        elif name == "MINISWHITE" and array.dtype.kind in "ub":
            array = ~array if array.dtype == np.bool_ else white_value(tags) - array
        elif name == "YCBCR" and tags.compression in JPEG:
            notes.append("YCbCr converted to RGB")
        elif name not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise FileError(str(self.path), f"is a {name} TIFF.", "Convert it to grey or RGB.")
        orientation = self._orientation(page)
        if orientation > 1:
            array, same = apply_orientation(array, orientation), False
            valid = None if valid is None else apply_orientation(valid, orientation)
            notes.append("rotated upright according to its orientation tag")
            extras |= turned_extras(extras, orientation)
        if page == 0 and (text := self._description):
            if same:
                extras["text"] = {**extras.get("text", {}), "Description": text}
            else:
                notes.append("its axes left out")
        extras |= {"separate": True} if several and not self._layout.rows else {}
        array, note = _as_floats(np.uint8(255) * array if array.dtype == np.bool_ else array)
        return Decoded(array, (*notes, *note), extras, alpha, orientation, several or _is_plain(tags, alpha), valid)

    @property
    def _description(self) -> str | None:
        """What the first page of a result says of the axes."""
        layout = self._layout
        in_order = [number for image in self._images for number in image] == list(range(len(layout.planes)))
        return layout.description if in_order else layout.regrouped


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
    array, extras = picture.samples, dict(picture.extras)
    if not extras.pop("separate", False):
        options = page_options(array.shape[2], picture.pixels.shape[2], extras, array.dtype)
        writer.write(array[..., 0] if array.shape[2] == 1 else array, **options)
        return
    for channel in range(array.shape[2]):
        writer.write(np.ascontiguousarray(array[..., channel]), **page_options(1, 1, extras, array.dtype))
        extras = without_declarations(extras)  # which the first page makes


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


def _is_plain(page: Any, alpha: int | None) -> bool:
    """Return whether the file says that all samples beside grey are channels, none of them alpha."""
    return alpha is None and page.photometric.name in ("MINISBLACK", "MINISWHITE") and "ExtraSamples" in page.tags


def _palette(page: Any) -> np.ndarray:
    """Return the colours of a palette, `(entries, 3)`, uint8."""
    colours = np.moveaxis(page.colormap, 0, -1)
    return (colours >> 8 if colours.max() > 255 else colours).astype("uint8")


def _is_measured(page: Any) -> bool:
    """Return whether a palette only shows samples: of ImageJ, or one hue that grows brighter from black."""
    if page.samplesperpixel != 1 or page.dtype is None or page.dtype.name not in INTEGERS:
        return False
    colours = page.colormap.astype("int64")
    rising = bool((np.diff(colours, axis=1) >= 0).all()) and not colours[:, 0].any()
    return (page.parent.is_imagej and page.bitspersample == 8) or (rising and len(np.unique(colours.sum(axis=0))) > 16)


def _is_cmyk(page: Any) -> bool:
    """Return whether the samples of a page are four inks, and perhaps more, of 8 or 16 bits."""
    inks = page.photometric.name == "SEPARATED" and page.tags.valueof("InkSet", 1) == 1
    return inks and page.samplesperpixel >= 4 and page.dtype in (np.uint8, np.uint16)
