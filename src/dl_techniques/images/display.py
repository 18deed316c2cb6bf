"""Arrays side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def contact_sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]], gap: int = 4) -> np.ndarray:
    """Return rows of equally large pictures as one, `(height, width, 3)`, uint8, white between them."""

    def framed(image: np.ndarray) -> np.ndarray:
        colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        return np.pad(colour, ((gap, gap), (gap, gap), (0, 0)), constant_values=255)

    return np.concatenate([np.concatenate([framed(image) for _, image in row], axis=1) for row in rows])


def thumbnail(picture: np.ndarray, size: int) -> np.ndarray:
    """Return every n-th pixel of a picture, `(size, size, 3)`, uint8, white where it is not square."""
    step = -(-max(picture.shape[:2]) // size)
    small = (picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2))[::step, ::step]
    room = [(0, size - extent) for extent in small.shape[:2]]
    return np.pad(small, (*room, (0, 0)), constant_values=255)


def visible(image: np.ndarray) -> np.ndarray:
    """Return what can be shown of an image: its first three channels, or the first where there are fewer."""
    return image[..., : 3 if image.shape[-1] >= 3 else 1]


def to_display(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return an image as uint8, `low` and below as black, `high` and above as white.

    `visible` channels are shown: the result is `(height, width, 3)` or `(height, width)`.
    """
    share = np.clip((visible(image).astype("float64") - low) / max(high - low, 1e-30), 0, 1)
    shown = np.rint(255 * share).astype("uint8")
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the centre, beginning at multiples of 8 so that the blocks of a JPEG stay where they are."""
    top, left = (max(extent - size, 0) // 2 // 8 * 8 for extent in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]
