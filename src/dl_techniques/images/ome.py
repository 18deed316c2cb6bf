"""OME-XML: what it says of the planes of a TIFF, and the same text for a file that has them in another order."""

from __future__ import annotations

import re

import numpy as np

PIXELS = re.compile(r"<(\w+:)?Pixels\b([^>]*)>(.*?)</(?:\w+:)?Pixels>", re.DOTALL)
PLACES = re.compile(r"<(?:\w+:)?TiffData\b[^>]*?(?:/>|>.*?</(?:\w+:)?TiffData>)\s*", re.DOTALL)
NUMBERS = re.compile(r'\b(?:Size[CZT]|IFD|PlaneCount|NumPlanes|First[CZT])\s*=\s*["\'](\d+)["\']')
TYPES = {"float32": "float", "float64": "double"}  # others have the same name


def largest_number(text: str) -> int:
    """Return the largest number of planes that anything in OME-XML names, those of each image multiplied."""
    each = [int(number) for number in NUMBERS.findall(text)]
    return max([*each, *(_planes(found) for found in PIXELS.finditer(text))], default=0)


def in_order(text: str, channels_first: bool = False) -> str:
    """Return OME-XML for a file that holds all planes one after another, in the order of the axes that it states.

    Args:
        text: The XML.
        channels_first: Whether the channels of a place and time follow one another in the file.
    """
    begin = 0

    def placed(found: re.Match) -> str:
        nonlocal begin
        prefix, head, inside = found[1] or "", found[2], found[3]
        count = _planes(found)
        data = f'<{prefix}TiffData IFD="{begin}" PlaneCount="{count}"/>'
        begin += count
        place = PLACES.search(inside)
        after = len(inside) if place is None else place.start()
        inside = inside[:after] + data + PLACES.sub("", inside[after:])
        if channels_first:
            head = re.sub(r'DimensionOrder="XY(\w*)C(\w*)"', r'DimensionOrder="XYC\1\2"', head)
        return f"<{prefix}Pixels{head}>{inside}</{prefix}Pixels>"

    return PIXELS.sub(placed, text)


def of_type(text: str, dtype: np.dtype) -> str:
    """Return OME-XML for samples of another type."""
    name = TYPES.get(dtype.name, dtype.name)
    return PIXELS.sub(lambda found: re.sub(r'(\sType=")\w+"', rf'\g<1>{name}"', found[0], count=1), text)


def _planes(found: re.Match) -> int:
    samples = re.search(r'SamplesPerPixel\s*=\s*"(\d+)"', found[3])
    sizes = [re.search(rf'\bSize{axis}\s*=\s*"(\d+)"', found[2]) for axis in "CZT"]
    channels, slices, times = (1 if size is None else int(size[1]) for size in sizes)
    return max(channels // max(int(samples[1]) if samples else 1, 1), 1) * slices * times
