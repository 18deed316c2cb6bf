"""What compressed images say of their size in their first bytes, to be compared before they are decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from itertools import chain
from typing import BinaryIO, NamedTuple

from dl_techniques.images.formats import HEAD, format_that_begins

INFLATED = 2**20  # bytes at a time
# First column and row of each pass of an interlaced PNG, and its steps across and down (PNG specification, 8.2).
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Declared(NamedTuple):
    """Height, width and samples a pixel that a codestream declares; 0 samples where that is not looked up."""

    height: int
    width: int
    samples: int = 0


def declared_size(data: bytes) -> Declared | None:
    """Return what a codestream of JPEG, JPEG 2000, JPEG XL, JPEG XR, PNG, WebP or LERC declares; `None` for others.

    Raises:
        ValueError: It is broken.
    """
    form = format_that_begins(data[:HEAD])
    reader = READERS.get(form.name) if form else next((read for head, read in OTHERS if data.startswith(head)), None)
    try:
        return None if reader is None else reader(data)
    except (struct.error, IndexError) as error:
        raise ValueError("it ends within its head") from error


def _jpeg(data: bytes) -> Declared:
    """Follow the segments to the start of the frame, SOF0 to SOF15 but for the tables among them (T.81, B.1.1.3)."""
    place = 2
    while True:
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == 0xFFFF:  # filled up
            place += 1
        elif 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width, samples = struct.unpack_from(">HHB", data, place + 5)
            return Declared(height, width, samples)
        elif marker < 0xFFC0 or marker == 0xFFDA:
            raise ValueError("it has no frame")
        else:
            place += 2 if 0xFFD0 <= marker <= 0xFFD8 else 2 + length


def _jpeg2000(data: bytes) -> Declared:
    """Read the segment SIZ that opens the codestream (T.800, A.5.1)."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0:
        raise ValueError("it has no codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, place + 8)
    (samples,) = struct.unpack_from(">H", data, place + 40)
    return Declared(bottom - top, right - left, samples)


RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, JPEG XL's 1 to 7


def _jpeg_xl(data: bytes) -> Declared:
    """Read the size header that opens the codestream (ISO 18181-1, SizeHeader), bare or in the boxes of a file."""
    place = 0 if data.startswith(b"\xff\x0a") else data.find(b"\xff\x0a", 32)
    if place < 0:
        raise ValueError("it has no codestream")
    bits = chain.from_iterable(((byte >> n) & 1 for n in range(8)) for byte in data[place + 2 : place + 16])

    def number(width: int) -> int:
        return sum([next(bits) << n for n in range(width)])

    try:
        small = number(1)

        def side() -> int:
            return 8 * (1 + number(5)) if small else 1 + number((9, 13, 18, 30)[number(2)])

        height, ratio = side(), number(3)
        return Declared(height, height * RATIOS[ratio - 1][0] // RATIOS[ratio - 1][1] if ratio else side())
    except StopIteration:
        raise ValueError("it ends within its head") from None


def _jpeg_xr(data: bytes) -> Declared:
    """Read the tags of the container (T.832, A.7)."""
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    found = {}
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from("<HHII", data, entry)
        found[tag] = value & 0xFFFF if kind == 3 else value
    if not {0xBC80, 0xBC81} <= found.keys():
        raise ValueError("it has no size")
    return Declared(found[0xBC81], found[0xBC80])


def _webp(data: bytes) -> Declared:
    """Read the first chunk: that of a lossy, a lossless or an extended image (RFC 9649)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return Declared(1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little"))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Declared(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    width, height = struct.unpack_from("<HH", data, 26)
    return Declared(height & 0x3FFF, width & 0x3FFF)


def _png(data: bytes) -> Declared:
    width, height = struct.unpack_from(">II", data, 16)
    return Declared(height, width)


def sample_bits(data: bytes) -> int:
    """Return the bits of a sample of JPEG 2000 (the segment SIZ) or AVIF (the box av1C of AV1-ISOBMFF, 2.3)."""
    if (place := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return (data[place + 42] & 0x7F) + 1
    place = data.find(b"av1C")
    high, twelve = (data[place + 6] >> shift & 1 for shift in (6, 5)) if place >= 0 else (0, 0)
    return 8 + 2 * high + 2 * (high and twelve)


def png_is_complete(file: BinaryIO) -> bool:
    """Return whether the compressed data of a PNG give all of its rows; the file is at its beginning."""
    file.seek(8)
    width, height, depth, colours, interlaced = 0, 0, 0, 0, 0
    found, inflate = 0, zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        content = file.read(length + 4)[:length]
        if name == b"IHDR":
            width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", content)
        while name == b"IDAT" and content:
            found += len(inflate.decompress(content, INFLATED))
            content = inflate.unconsumed_tail
    samples = {2: 3, 4: 2, 6: 4}.get(colours, 1)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(height - top) // down), -(-(width - left) // across)) for left, top, across, down in passes)
    expected = sum(rows * (1 + -(-columns * depth * samples // 8)) for rows, columns in sizes if columns > 0)
    return found >= expected


def _lerc(data: bytes) -> Declared:
    """Read the head of LERC 2, which has a checksum from its third version on."""
    (version,) = struct.unpack_from("<i", data, 6)
    return Declared(*struct.unpack_from("<ii", data, 14 if version >= 3 else 10))


READERS: dict[str, Callable[[bytes], Declared]] = {
    "JPEG": _jpeg,
    "JPEG2000": _jpeg2000,
    "JPEG XL": _jpeg_xl,
    "WEBP": _webp,
    "PNG": _png,
}
OTHERS = ((b"II\xbc\x01", _jpeg_xr), (b"Lerc2 ", _lerc))  # that are not files of their own here
