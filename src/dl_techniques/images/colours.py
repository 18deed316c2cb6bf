"""Inks to light: CMYK as RGB."""

from __future__ import annotations

import io

import numpy as np


def cmyk_to_rgb(array: np.ndarray, profile: bytes | None) -> tuple[np.ndarray, str]:
    """Return inks, `(height, width, 4)`, 8 or 16 bits, as RGB of the same type, and in words how.

    An ink of 0 is none. sRGB by the ICC profile, otherwise R = (1 − C)(1 − K) and so on; 16 bits go by inks alone, as
    profiles would make them 8.
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
