"""Tags of TIFF that say where and how an image was taken: read, and written again with a result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

PLACE = (33550, 33922, 34264, 34735, 34736, 34737)  # of GeoTIFF, true as long as pixels stay where they are
GDAL_METADATA, GDAL_NODATA = 42112, 42113
IMAGEJ = (50838, 50839)  # labels, tables of colours and regions
# Name of the document and of the page, its position, computer, XMP, IPTC.
CARRIED = (269, 285, 286, 287, 316, 700, 33723, *PLACE, GDAL_METADATA, GDAL_NODATA)
# What says how samples are stored, and what `metadata` carries in words.
STORAGE = frozenset((
    *range(254, 263), 266, 270, 271, 272, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 296, 297, 305, 306, 315,
    317, 318, 319, 320, 321, *range(322, 331), 332, 333, 334, 336, 337, 338, 339, 340, 341, 347,
    *range(512, 522), 529, 530, 531, 532, 32995, 32996, 32997, 32998, 33432, 34675, 50674, *IMAGEJ,
))  # fmt: skip
STATISTICS = re.compile(r'\s*<Item name="STATISTICS_[^"]*"[^>]*>[^<]*</Item>')


def carried_tags(page: Any) -> dict[str, Any]:
    """Return `tags`, as tifffile writes them, and `tags_left_out`, names, of a page that tifffile opened."""
    found, left = [], []
    for tag in page.tags:
        if tag.code in CARRIED:
            value, count = tag.value, tag.count
            if isinstance(value, str):
                if tag.code == GDAL_METADATA:
                    value = STATISTICS.sub("", value)  # of the old samples
                value = value.encode() + b"\0"
                count = len(value)
            found.append((tag.code, int(tag.dtype), count, value, True))
        elif tag.code not in STORAGE:
            left.append(str(tag.name))
    return {**({"tags": found} if found else {}), **({"tags_left_out": left} if left else {})}


def imagej_tags(page: Any) -> dict[str, Any]:
    """Return as `imagej` the labels, ranges, tables of colours and regions that ImageJ keeps in a page."""
    found = page.tags.valueof(IMAGEJ[1])
    return {"imagej": found} if isinstance(found, dict) and found else {}


def written_tags(extras: Any) -> list[tuple]:
    """Return the tags of extras as tifffile writes them, in this machine's byte order."""
    import tifffile

    tags = list(extras.get("tags", ()))
    if told := extras.get("imagej"):
        tags += tifffile.tifffile.imagej_metadata_tag(told, "<" if np.little_endian else ">")
    return tags


def without_place(tags: Sequence[tuple]) -> list[tuple]:
    """Return tags without those that say where each pixel lies on Earth."""
    return [tag for tag in tags if tag[0] not in PLACE]


def has_place(tags: Sequence[tuple]) -> bool:
    """Return whether tags say where each pixel lies on Earth."""
    return any(tag[0] in PLACE for tag in tags)


def mask_tags(tags: Sequence[tuple], absent: int) -> list[tuple]:
    """Return the tags of an image that are true of a mask of it, whose value is `absent` where there is no data."""
    found = [tag for tag in tags if tag[0] in PLACE]
    if any(tag[0] == GDAL_NODATA for tag in tags):
        words = f"{absent}".encode() + b"\0"
        found.append((GDAL_NODATA, 2, len(words), words, True))
    return found


def valid_samples(page: Any, array: np.ndarray) -> np.ndarray | None:
    """Return which samples hold data, of the array's shape, as GDAL's tag or ImageJ's NaN say; `None` if all do."""
    if GDAL_NODATA in page.tags:
        absent = np.isnan(array) if page.nodata != page.nodata else array == page.nodata
    elif array.dtype.kind == "f" and page.parent.is_imagej:
        absent = np.isnan(array)
    else:
        return None
    return ~absent if absent.any() else None
