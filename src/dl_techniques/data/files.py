"""Image files to arrays, with a clear refusal of what is not a whole image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dl_techniques.errors import FileError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 178_956_970  # where Pillow itself begins to refuse


def read_gray(path: str | os.PathLike) -> np.ndarray:
    """Read an 8-bit grey image file.

    Args:
        path: A file in one of `FORMATS`.

    Returns:
        `(height, width)`, uint8.

    Raises:
        FileError: The file is missing, broken, too large, or not 8-bit grey; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise FileError(str(path), f"has {width}x{height} pixels, more than {MAX_PIXELS}.", "Crop it.")
            if file.mode != "L":
                raise FileError(str(path), f"is of mode {file.mode}, not 8-bit grey.", "Convert it to 8-bit grey.")
            return np.asarray(file)
    except FileNotFoundError as error:
        raise FileError(str(path), "does not exist.", "Check the path.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(str(path), f"is not an image in one of {', '.join(FORMATS)}.") from error
    except (OSError, SyntaxError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error
