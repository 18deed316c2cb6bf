"""What files say of an image besides its samples: colour profile, resolution, EXIF, words; read, turned, written.

`Picture.extras` holds, where the file has them, `icc_profile` (bytes), `dpi` (pixels an inch, across and down),
`per_unit` (pixels in a unit that the file does not name, as microscopes write it), `exif` (bytes) and `text` (words by
PNG's keywords: Title, Author, Description, Copyright, Software, Comment and others). Images are turned upright when
they are read; of those read in parts, which are not, `orientation` (1 to 8) goes along.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

# Tags that TIFF and EXIF share, by PNG's keyword for them.
TEXT_TAGS = {
    "Description": 270, "Make": 271, "Model": 272, "Software": 305, "Creation Time": 306, "Author": 315,
    "Copyright": 33432,
}  # fmt: skip
ORIENTATION = 0x0112
LARGEST_EXIF = 65_533  # of one segment of a JPEG


def file_extras(file: Any, upright: Any) -> dict[str, Any]:
    """Return the extras of a file that Pillow opened; `upright` is its image turned, which says so no longer."""
    extras = {key: file.info[key] for key in ("icc_profile", "dpi") if file.info.get(key)}
    if exif := upright.getexif():
        extras["exif"] = exif.tobytes()
    # What Pillow itself turns into EXIF, or has turned, is no text.
    text = {key: str(words) for key, words in getattr(file, "text", {}).items() if not _hidden(key)}
    if isinstance(comment := file.info.get("comment"), bytes):
        text["Comment"] = comment.decode("utf-8", "replace")
    return {**extras, **({"text": text} if text else {})}


def _hidden(key: str) -> bool:
    return key.startswith("Raw profile type") or key == "XML:com.adobe.xmp"


def turned_upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return samples, `(height, width[, samples])`, turned as an EXIF orientation, 1 to 8, says; others as they are."""
    turns = {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}
    turned = np.rot90(array, turns.get(orientation, 0))
    return np.ascontiguousarray(turned[:, ::-1] if orientation in (2, 4, 5, 7) else turned)


def save_options(name: str, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return extras as Pillow's `save` takes them for a format."""
    options = {key: extras[key] for key in ("icc_profile", "dpi", "exif") if key in extras}
    text = extras.get("text", {})
    if name == "JPEG":
        if len(options.get("exif", b"")) > LARGEST_EXIF:
            del options["exif"]
        if "Comment" in text:
            options["comment"] = text["Comment"].encode()[:LARGEST_EXIF]
    elif name == "PNG" and text:
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        for key, words in text.items():
            options["pnginfo"].add_itxt(key, words) if not words.isascii() else options["pnginfo"].add_text(key, words)
    return options


def with_extras(png: bytes, extras: Mapping[str, Any]) -> bytes:
    """Return a PNG with extras: for samples that Pillow cannot write."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="PNG", **save_options("PNG", extras))
    told = b"".join(chunk for name, chunk in _chunks(buffer.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND"))
    end = len(png) - sum(len(chunk) for _, chunk in list(_chunks(png))[1:])  # of the head and its first chunk
    return png[:end] + told + png[end:]


def _chunks(png: bytes):
    """Yield names and bytes of the chunks of a PNG."""
    place = 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place : place + 12 + length]
        place += 12 + length


def tiff_extras(page: Any) -> dict[str, Any]:
    """Return the extras of a page that tifffile opened."""
    extras: dict[str, Any] = {}
    unit = int(page.tags.valueof("ResolutionUnit", 2))
    if unit in (1, 2, 3) and "XResolution" in page.tags and "YResolution" in page.tags:
        scale = 2.54 if unit == 3 else 1.0  # centimetres
        fractions = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
        if all(below for _, below in fractions) and (unit != 1 or fractions != [(1, 1), (1, 1)]):  # not told
            extras["per_unit" if unit == 1 else "dpi"] = tuple(scale * above / below for above, below in fractions)
    if profile := page.tags.valueof("InterColorProfile"):
        extras["icc_profile"] = profile
    text = {key: str(page.tags.valueof(tag)) for key, tag in TEXT_TAGS.items() if page.tags.valueof(tag)}
    if text.get("Description", "").startswith('{"shape":'):  # tifffile's own, true of the old file alone
        del text["Description"]
    return {**extras, **({"text": text} if text else {})}


def tiff_options(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return extras as tifffile writes them; of EXIF the words that TIFF has tags for."""
    options: dict[str, Any] = {"iccprofile": extras.get("icc_profile"), "software": False, "metadata": None}
    if "dpi" in extras:
        options |= {"resolution": tuple(map(float, extras["dpi"])), "resolutionunit": 2}
    elif "per_unit" in extras:
        options |= {"resolution": extras["per_unit"], "resolutionunit": 1}
    text = {**_exif_text(extras.get("exif", b"")), **extras.get("text", {})}
    tags = [(ORIENTATION, 3, 1, extras["orientation"], True)] if "orientation" in extras else []
    for key, tag in TEXT_TAGS.items():
        words = text.get(key, "").encode()
        if words and key == "Description":
            options["description"] = words
        elif words:
            tags.append((tag, 2, len(words) + 1, words + b"\0", True))
    return {**options, "extratags": tags}


def _exif_text(content: bytes) -> dict[str, str]:
    from PIL import Image

    if not content:
        return {}
    exif = Image.Exif()
    exif.load(content)
    return {key: exif[tag] for key, tag in TEXT_TAGS.items() if isinstance(exif.get(tag), str)}
