"""Inks to light: CMYK as RGB."""

from __future__ import annotations

import io

import numpy as np


def cmyk_to_rgb(array: np.ndarray, profile: bytes | None) -> tuple[np.ndarray, str]:
    """Return an image of four inks as RGB, and in words how: by its colour profile, or by its inks alone.

    Args:
        array: `(height, width, 4)`, uint8 or uint16, 0 where there is no ink.
        profile: ICC profile of the file. 16 bits go by inks alone: the library of profiles would make them 8.

    Returns:
        `(height, width, 3)` of the same type: sRGB by the profile, otherwise R = (1 − C)(1 − K) and so on.
    """
    if profile and array.dtype == np.uint8 and (converted := _by_profile(array, profile)) is not None:
        return converted, "CMYK converted to sRGB by its profile"
    largest = np.iinfo(array.dtype).max
    light = (largest - array).astype("float64")
    rgb = np.rint(light[..., :3] * light[..., 3:] / largest).astype(array.dtype)
    return rgb, "CMYK converted to RGB" + (", its profile left out" if profile else "")


def _by_profile(array: np.ndarray, profile: bytes) -> np.ndarray | None:
    from PIL import Image, ImageCms

    try:
        image = Image.frombytes("CMYK", (array.shape[1], array.shape[0]), np.ascontiguousarray(array).tobytes())
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # broken, or of other colours
        return None
    return None if converted is None else np.asarray(converted)
