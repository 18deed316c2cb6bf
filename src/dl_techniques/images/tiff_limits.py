"""What a TIFF asks for, counted before anything of that size is allocated."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dl_techniques.errors import FileError
from dl_techniques.images.codestreams import declared_size

MAX_PAGES = 100_000  # each takes tifffile some 60 microseconds
MAX_PARTS = 2**19  # strips or tiles of a page: 34 gigapixels in tiles of 256
PARTS = (273, 279, 324, 325)  # where strips and tiles lie, and how long they are
COPY = "Copy or export it again."
# Compressions whose decoders make an image of the size that the codestream has, whatever the TIFF says.
SELF_SIZED = (6, 7, 22610, 33003, 33004, 33005, 33007, 34712, 34887, 34892, 34933, 34934, 50001, 50002, 52546)
BLOCK = 16  # JPEG fills up its edges to so many pixels
LARGEST_TILE = 2**22  # pixels of a tile that may be larger than its image


def check_directories(path: Path, file: BinaryIO) -> None:
    """Raise `FileError` if the pages of a TIFF form a loop, or if they or their parts are too many.

    A loop tifffile would follow for ever; the rest it would allocate.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", head, 2)[0] == 43
    forms = ("Q", "Q", "HHQ8x") if big else ("H", "I", "HHI4x")
    counted, link, entry = (order + form for form in forms)
    each = struct.calcsize(entry)

    def number(form: str, place: int) -> int:
        file.seek(min(place, size))
        content = file.read(struct.calcsize(form))
        return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else 0

    seen: set[int] = set()
    place = number(link, 8 if big else 4)
    while place:
        if place in seen:
            raise FileError(str(path), "has pages that form a loop.", COPY)
        seen.add(place)
        if place >= size:
            raise FileError(str(path), f"is cut off: page {len(seen)} would begin behind its end.", COPY)
        if len(seen) > MAX_PAGES:
            raise FileError(str(path), f"has more than {MAX_PAGES} pages.", "Split it.")
        count = number(counted, place)
        if not count:
            raise FileError(
                str(path), f"has nothing where page {len(seen)} begins: it was not copied completely.", COPY
            )
        begin, length = place + struct.calcsize(counted), each * count
        file.seek(min(begin, size))
        entries = file.read(min(length, size))
        for tag, _, values in struct.iter_unpack(entry, entries[: len(entries) // each * each]):
            if tag in PARTS and values > MAX_PARTS:
                reason = f"has a page of {values} strips or tiles, more than the {MAX_PARTS} allowed."
                raise FileError(str(path), reason, "Save it in larger tiles.")
        place = number(link, begin + length)


def guard(page: Any) -> Any:
    """Return a page that tifffile opened; it refuses parts that are larger than it says, before they are decoded.

    Raises:
        ValueError: Its tiles are far larger than the image, or it is a volume.
    """
    if not hasattr(page.photometric, "name"):
        raise ValueError("it does not say what its samples mean (PhotometricInterpretation)")
    if page.imagedepth > 1:
        raise ValueError(f"it is a volume of {page.imagedepth} planes in one page")
    tile = page.tiledepth * page.tilelength * page.tilewidth if page.is_tiled else 0
    if tile > max(LARGEST_TILE, page.imagelength * page.imagewidth):
        raise ValueError(f"it is of {page.imagewidth}x{page.imagelength} pixels in tiles of {tile} pixels")
    if page.compression in SELF_SIZED and not isinstance(page.decode, _CheckedDecoder):
        page.decode = _CheckedDecoder(page, page.decode)
    return page


class _CheckedDecoder:
    """The decoder of a page's parts, which first compares their sizes with what the page says."""

    def __init__(self, page: Any, decode: Callable[..., Any]) -> None:
        self.page, self.decode = page, decode

    def __call__(self, data: bytes | None, index: int, /, **options: Any) -> Any:
        if data is not None:
            _check_part(self.page, options.get("jpegheader") or data, index)
        return self.decode(data, index, **options)


def _check_part(page: Any, data: bytes, index: int) -> None:
    """Raise `ValueError` if a codestream is not as large as its strip or tile, or as what of it lies in the image."""
    if page.is_tiled:
        height, width = page.tilelength, page.tilewidth
    else:
        height, width = min(page.rowsperstrip, page.imagelength), page.imagewidth
    across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
    row, column = index // across % down, index % across
    least = min(height, page.imagelength - row * height), min(width, page.imagewidth - column * width)
    found = declared_size(data)
    if found is None:
        return  # the decoder refuses what is none of its own
    largest = [-(-side // BLOCK) * BLOCK for side in (height, width)]
    if not (least[0] <= found.height <= largest[0] and least[1] <= found.width <= largest[1]):
        raise ValueError(f"a part of {least[1]}x{least[0]} pixels holds an image of {found.width}x{found.height}")
    if found.samples > max(page.samplesperpixel, 4):
        raise ValueError(f"a part of {page.samplesperpixel} samples a pixel holds an image of {found.samples}")
