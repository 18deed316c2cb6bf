"""TIFF files page by page."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dl_techniques.errors import FileError
from dl_techniques.images.colours import cmyk_to_rgb
from dl_techniques.images.metadata import tiff_extras, tiff_options, turned_upright

WIDER = {
    **dict.fromkeys(("int8", "int16", "float16"), "float32"),
    **dict.fromkeys(("int32", "uint32", "int64", "uint64"), "float64"),
}
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Page:
    """A page to write.

    Attributes:
        array: `(height, width, samples)`.
        colours: How many of the samples are no alpha.
        extras: See `metadata`.
    """

    array: np.ndarray
    colours: int
    extras: dict[str, Any] = field(default_factory=dict)


def count_pages(path: Path) -> int:
    """Return the number of pages of a TIFF, without reduced copies.

    Raises:
        FileError: The file is broken.
    """
    with _open(path) as file:
        return len(_pages(file))


def page_shape(path: Path) -> tuple[int, int, int]:
    """Return height, width and samples a pixel of the first page of a TIFF, three of a palette.

    Raises:
        FileError: The file is broken.
    """
    with _open(path) as file:
        page = _pages(file)[0]
        return page.imagelength, page.imagewidth, 3 if page.photometric.name == "PALETTE" else page.samplesperpixel


def read_pages(
    path: Path, check_size: Callable[[tuple[int, int]], None], single: bool = False, only: int | None = None
) -> Iterator[tuple[np.ndarray, tuple[str, ...], dict[str, Any], int | None]]:
    """Yield the pages of a TIFF, without reduced copies.

    Each is `(height, width[, samples])`, what was converted, the extras as `Page` has them, and which of the samples
    the file calls alpha, if any.

    Args:
        path: The file.
        check_size: Called with the width and height of each page before it is decoded.
        single: Refuse a file of several pages.
        only: The page to yield, from 0; all if `None`.

    Raises:
        FileError: The file is broken, of colours that are not read, or holds several pages.
    """
    number = None if only is None else _place(path, only)
    with _open(path, checked=number is not None) as file:
        pages = _pages(file) if number is None else [file.pages[number]]
        if single and len(pages) > 1:
            reason = f"holds {len(pages)} pages, not one image."
            raise FileError(str(path), reason, "Save the pages as files of their own.")
        for page in pages:
            check_size((page.imagewidth, page.imagelength))
            yield _decode(path, page)


def write_pages(file: IO[bytes], pages: Sequence[Page]) -> None:
    """Write the pages of a TIFF, compressed without loss."""
    import tifffile

    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(
                page.array[..., 0] if page.array.shape[2] == 1 else page.array,
                **page_options(page.array.shape[2], page.colours, page.extras),
            )


def page_options(samples: int, colours: int, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tifffile writes a page: compressed without loss, the sample beyond the colours, if any, as alpha."""
    return {
        "photometric": "rgb" if colours == 3 else "minisblack",
        "planarconfig": "contig" if samples > 1 else None,
        "compression": "zlib",
        **({"extrasamples": ["unassalpha"]} if samples > colours else {}),
        **tiff_options(extras),
    }


@contextlib.contextmanager
def _open(path: Path, checked: bool = False) -> Iterator[Any]:
    import tifffile

    if not checked:
        _check_chain(path)
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except (tifffile.TiffFileError, RuntimeError, KeyError, struct.error) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error


def _check_chain(path: Path) -> None:
    """Raise `FileError` if the pages of a TIFF lead back to one of them: tifffile would follow them for ever."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack_from(order + "H", head, 2)[0] == 43
        tag_count, tag_size, link = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")

        def number(form: str, place: int) -> int:
            file.seek(min(place, size))
            content = file.read(struct.calcsize(form))
            return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else 0

        seen: set[int] = set()
        place = number(link, 8 if big else 4)
        while place:
            if place in seen:
                raise FileError(str(path), "has pages that lead back to one another.", "Copy or export it again.")
            seen.add(place)
            place = number(link, place + struct.calcsize(tag_count) + tag_size * number(tag_count, place))


def _pages(file: Any) -> list[Any]:
    return [page for page in file.pages if not page.is_reduced] or list(file.pages)


def _alpha(page: Any) -> int | None:
    """Return which sample is alpha, as the file says; samples beyond grey or RGB that it does not name are channels."""
    kinds = [kind.name for kind in page.extrasamples]
    first = page.samplesperpixel - len(kinds)
    return next((first + n for n, kind in enumerate(kinds) if kind in ("ASSOCALPHA", "UNASSALPHA")), None)


def _place(path: Path, page: int) -> int:
    """Return where in a TIFF a page lies, reduced copies counted."""
    numbers = _page_numbers(path, path.stat().st_mtime_ns)
    if page not in range(len(numbers)):
        raise FileError(str(path), f"holds {len(numbers)} pages, no page {page + 1}.", "Was it changed?")
    return numbers[page]


@functools.lru_cache(maxsize=64)
def _page_numbers(path: Path, changed: int) -> tuple[int, ...]:
    """Return where in a TIFF its pages lie: to look at all pages for each of them would take long in a large stack."""
    with _open(path) as file:
        return tuple(page.index for page in _pages(file))


def _decode(path: Path, page: Any) -> tuple[np.ndarray, tuple[str, ...], dict[str, Any], int | None]:
    array, notes, extras, alpha = page.asarray(), [], tiff_extras(page), _alpha(page)
    if page.samplesperpixel > 1 and page.planarconfig.name == "SEPARATE":
        array = np.moveaxis(array, 0, -1)
    if page.photometric.name == "PALETTE":
        array = np.moveaxis(page.colormap, 0, -1)[array]
        notes.append("palette expanded")
    elif is_cmyk(page):
        colours, note = cmyk_to_rgb(array[..., :4], extras.pop("icc_profile", None))  # it described the other colours
        array, alpha = np.concatenate([colours, array[..., 4:]], axis=-1), None if alpha is None else alpha - 1
        notes.append(note)
    elif page.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    elif page.photometric.name not in ("MINISBLACK", "RGB"):
        raise FileError(str(path), f"is a {page.photometric.name} TIFF.", "Convert it to grey or RGB.")
    orientation = page.tags.valueof("Orientation", 1)
    if orientation in range(2, 9):
        array = turned_upright(array, orientation)
        notes.append("turned upright as its tag says")
        if orientation > 4:
            extras |= {key: extras[key][::-1] for key in ("dpi", "per_unit") if key in extras}
    if notes and extras.get("text", {}).get("Description", "").startswith(("ImageJ=", "<?xml")):
        del extras["text"]["Description"]  # it told how the samples lie
    array, note = _as_floats(np.uint8(255) * array if array.dtype == np.bool_ else array)
    return array, (*notes, *note), extras, alpha


def _as_floats(array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return samples of a type that is rare as floats that hold each of its values, and in words that this was done."""
    name = array.dtype.name
    wider = WIDER.get(name)
    if wider is None or (array.dtype.itemsize == 8 and array.size and np.abs(array.astype("float64")).max() >= 2**53):
        return array, ()
    return array.astype(wider), (f"{name} read as {wider}, value for value",)


def is_cmyk(page: Any) -> bool:
    """Return whether the samples of a page are four inks, and perhaps more, of 8 or 16 bits."""
    inks = page.photometric.name == "SEPARATED" and page.tags.valueof("InkSet", 1) == 1
    return inks and page.samplesperpixel >= 4 and page.dtype in (np.uint8, np.uint16)
