"""Image files to arrays, with a clear refusal of what is not a whole image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dl_techniques.errors import FileError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 178_956_970  # where Pillow itself begins to refuse


def read_gray(path: str | os.PathLike) -> np.ndarray:
    """Read an 8-bit grey image file, `(height, width)`, uint8; see `read_pixels`."""
    return read_pixels(path, 1)[..., 0]


def read_pixels(path: str | os.PathLike, channels: int) -> np.ndarray:
    """Read an 8-bit image file that is grey or RGB already.

    Args:
        path: A file in one of `FORMATS`.
        channels: 1 for grey, 3 for RGB.

    Returns:
        `(height, width, channels)`, uint8.

    Raises:
        FileError: The file is missing, broken, too large, or of another mode; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    mode, word = {1: ("L", "8-bit grey"), 3: ("RGB", "8-bit RGB")}[channels]
    try:
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise FileError(str(path), f"has {width}x{height} pixels, more than {MAX_PIXELS}.", "Crop it.")
            if file.mode != mode:
                raise FileError(str(path), f"is of mode {file.mode}, not {word}.", f"Convert it to {word}.")
            return np.asarray(file).reshape(height, width, channels)
    except FileNotFoundError as error:
        raise FileError(str(path), "does not exist.", "Check the path.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(str(path), f"is not an image in one of {', '.join(FORMATS)}.") from error
    except (OSError, SyntaxError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Return samples of an integer type as float32, its largest value as 1."""
    return pixels.astype("float32") / np.float32(np.iinfo(pixels.dtype).max)
