"""The only table of image formats. A format is a row and a module with a class `Source` and a function `write`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_techniques.errors import FileError

MAX_PIXELS = 178_956_970  # where Pillow itself begins to refuse
HEAD = 16  # bytes by which a format is recognised
DEEP = ("uint8", "uint16", "float32", "float64")


@dataclass(frozen=True)
class ImageFormat:
    """A format of image files.

    Attributes:
        name: As people and Pillow write it.
        suffixes: Of its files, the first for new ones.
        head: Pattern that its first bytes match.
        module: Dotted name of the module that reads and writes it, imported when it is needed.
        dtypes: Types of samples that it holds when written; none if it is only read.
        alpha: Whether it holds an alpha channel.
        palette: Whether it holds indices and their colours.
        pages: Whether it holds several images.
        windows: Whether it is read and written in parts.
        browser: Whether browsers show it.
        lossless: Whether samples come back as they were written.
        result: Suffix of results for images of this format where it suits them badly; its own if `None`.
    """

    name: str
    suffixes: tuple[str, ...]
    head: bytes
    module: str
    dtypes: tuple[str, ...] = ("uint8",)
    alpha: bool = True
    palette: bool = False
    pages: bool = False
    windows: bool = False
    browser: bool = False
    lossless: bool = True
    result: str | None = None


PILLOW, TIFF = "dl_techniques.images.pillow", "dl_techniques.images.tiff"
READ_ONLY: dict[str, Any] = {"dtypes": (), "lossless": False, "result": ".png"}  # of photographs
HEIC = rb".{4}ftyp(hei|hev|mif1|msf1)"

TABLE = (
    ImageFormat("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", PILLOW, ("uint8", "uint16"), palette=True, browser=True),
    ImageFormat(
        "JPEG",
        (".jpg", ".jpeg", ".jfif", ".mpo"),
        rb"\xff\xd8\xff",
        PILLOW,
        alpha=False,
        browser=True,
        lossless=False,
        result=".png",
    ),
    ImageFormat("WEBP", (".webp",), rb"RIFF.{4}WEBP", PILLOW, browser=True),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", TIFF, DEEP, pages=True, windows=True),
    ImageFormat("BMP", (".bmp",), rb"BM", PILLOW, alpha=False, browser=True, result=".png"),
    ImageFormat("AVIF", (".avif",), rb".{4}ftypavi[fs]", PILLOW, **READ_ONLY),
    ImageFormat("JPEG2000", (".jp2", ".j2k"), rb"\0{3}\x0cjP  |\xff\x4f\xff\x51", PILLOW, **READ_ONLY),
    ImageFormat("JPEG XL", (".jxl",), rb"\0{3}\x0cJXL |\xff\x0a", "dl_techniques.images.jpegxl", **READ_ONLY),
)


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of all image files."""
    return tuple(suffix for row in TABLE for suffix in row.suffixes)


def format_of(path: Path) -> ImageFormat | None:
    """Return the format that the suffix of a file name stands for."""
    return next((row for row in TABLE if path.suffix.lower() in row.suffixes), None)


def format_that_begins(head: bytes) -> ImageFormat | None:
    """Return the format of which these are the first bytes."""
    return next((row for row in TABLE if re.match(row.head, head, re.DOTALL)), None)


def recognize(head: bytes, path: Path) -> ImageFormat:
    """Return the format of a file by its first bytes, at least `HEAD` of them.

    Raises:
        FileError: It is of none.
    """
    if row := format_that_begins(head):
        return row
    if re.match(HEIC, head, re.DOTALL):
        raise FileError(str(path), "is a HEIC photograph, which is not read.", "Convert it to PNG or JPEG.")
    reason = f"is not an image in one of {', '.join(row.name for row in TABLE)}."
    raise FileError(str(path), reason, "Save it in one of them, or leave it out.")


def first_suffix(test: Callable[[ImageFormat], bool]) -> str:
    """Return the suffix of the first format that passes a test."""
    return next(row.suffixes[0] for row in TABLE if test(row))


def result_suffix(source: Path) -> str:
    """Return the suffix of the result for an image file: its own, or one that loses nothing."""
    row = format_of(source)
    return source.suffix if row is None or row.result is None else row.result
