"""The colours that masks give their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dl_techniques.images.files import image_shape, is_tiff
from dl_techniques.images.formats import FORMATS


def mask_colours(path: str | os.PathLike, values: Iterable[int]) -> dict[int, int]:
    """Return the colour, 0xRRGGBB, of each value of a mask with a palette or painted in colours; none of a grey one.

    Args:
        path: The file, which `read_mask` reads.
        values: What it gave.
    """
    from PIL import Image

    path = Path(path)
    if not is_tiff(path):
        with Image.open(path, formats=FORMATS) as file:
            if file.mode == "P":
                entries = np.reshape(file.getpalette("RGB") or [], (-1, 3)).tolist()
                colours = {
                    v: entries[v][0] << 16 | entries[v][1] << 8 | entries[v][2] for v in values if v < len(entries)
                }
                grey = all(len({*entries[value]}) == 1 for value in colours)  # a ramp, which shows nothing
                return {} if grey else colours
    return {value: value for value in values} if image_shape(path)[2] >= 3 else {}
