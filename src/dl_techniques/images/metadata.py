"""What files say of an image besides its samples: colour profile, resolution, EXIF, words; read, turned, written.

`Picture.extras` holds, where the file has them, `icc_profile` (bytes), `dpi` (pixels an inch, across and down),
`per_unit` (pixels in a unit that the file does not name, as microscopes write it), `exif` (bytes) and `text` (words by
PNG's keywords: Title, Author, Description, Copyright, Software, Comment and others); `broken` names what no file could
hold. Images are turned upright when they are read; of those read in parts, which are not, `orientation` (1 to 8) goes
along.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from dl_techniques.errors import first_of
from dl_techniques.images import ome
from dl_techniques.images.tiff_tags import carried_tags, has_place, imagej_tags, mask_tags, without_place, written_tags

# Tags that TIFF and EXIF share, by PNG's keyword for them.
TEXT_TAGS = {
    "Description": 270, "Make": 271, "Model": 272, "Software": 305, "Creation Time": 306, "Author": 315,
    "Copyright": 33432,
}  # fmt: skip
DECLARES = re.compile(r'ImageJ=|SCIFIO=|\{"shape":|shape=|<\?xml|<OME')  # descriptions of how samples lie in a file
ORIENTATION = 0x0112
ORIENTED_BY = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # Pillow takes the orientation from these
COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
LARGEST_EXIF = 65_533  # of one segment of a JPEG
LARGEST_DPI = 2**16 - 1, 5e7  # that JPEG holds, and that the other formats do, half a nanometre a pixel


def mend_exif(image: Any) -> tuple[str, ...]:
    """Empty the EXIF of an image that Pillow opened if it is broken, but for its orientation; say so in words."""
    from PIL import Image

    image.load()  # of a PNG EXIF may come last
    try:
        image.getexif().tobytes()
        return ()
    except Exception:  # of any class, as Pillow's parser has it
        mended, orientation = Image.Exif(), None
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ORIENTATION)
        for key in ORIENTED_BY:
            image.info.pop(key, None)
        image.getexif().load(b"")
        if orientation in range(2, 9):
            mended[ORIENTATION] = orientation
            image.info["exif"] = mended.tobytes()
            image.getexif().load(image.info["exif"])
        return ("its broken EXIF left out",)


def broken_parts(extras: dict[str, Any]) -> tuple[str, ...]:
    """Take the names of broken parts out of extras, and return them in words."""
    broken = extras.pop("broken", ())
    return (f"its broken {' and '.join(broken)} left out",) if broken else ()


def _gather(**parts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what the parts of metadata give; as `broken` the names of those that raise or that no file could hold."""
    extras, broken = {}, []
    for name, part in parts.items():
        try:
            found = part()
            save_options("PNG", found)
            tiff_options(found)
        except Exception:  # of any class, as the libraries' parsers have it
            broken.append(name)
        else:
            extras |= found
    return {**extras, **({"broken": broken} if broken else {})}


def file_extras(file: Any, upright: Any, content: BinaryIO) -> dict[str, Any]:
    """Return the extras of a file that Pillow opened.

    Args:
        file: What Pillow gave.
        upright: Its image turned, which says so no longer.
        content: The open file itself, which Pillow lets go when it has decoded the image.
    """

    def text() -> dict[str, Any]:
        # What Pillow itself turns into EXIF, or has turned, is no text.
        found = {key: str(words) for key, words in getattr(file, "text", {}).items() if not _hidden(key)}
        if isinstance(comment := file.info.get("comment"), bytes):
            found["Comment"] = comment.decode("utf-8", "replace")
        return {"text": found} if found else {}

    return _gather(
        profile=lambda: _profile(file.info.get("icc_profile")),
        resolution=lambda: {"dpi": _resolution(file.info["dpi"])} if file.info.get("dpi") else {},
        EXIF=lambda: {"exif": exif.tobytes()} if (exif := upright.getexif()) else {},
        text=text,
        colours=lambda: {"png": chunks} if file.format == "PNG" and (chunks := _colour_chunks(content)) else {},
    )


def _colour_chunks(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """Return name and content of the chunks of a PNG that say what its samples look like, but for its profile."""
    found = []
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            break
        content = file.read(length) if name in COLOUR_CHUNKS else None
        if content is not None:
            found.append((name, content))
        file.seek(4 if content is not None else length + 4, os.SEEK_CUR)
    return tuple(found)


def _profile(found: Any) -> dict[str, Any]:
    if found and not isinstance(found, bytes):
        raise TypeError("a profile is bytes")
    return {"icc_profile": found} if found else {}


def _resolution(found: tuple[float, float]) -> tuple[float, float]:
    """Return pixels an inch, or raise `ValueError` if they are none."""
    across, down = map(float, found)
    if not (0 < across <= LARGEST_DPI[1] and 0 < down <= LARGEST_DPI[1]):
        raise ValueError(f"resolution {found}")
    return across, down


def _hidden(key: str) -> bool:
    return key.startswith("Raw profile type") or key == "XML:com.adobe.xmp"


def apply_orientation(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return samples, `(height, width[, samples])`, turned as an EXIF orientation, 1 to 8, says; others as they are."""
    turns = {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}
    turned = np.rot90(array, turns.get(orientation, 0))
    return np.ascontiguousarray(turned[:, ::-1] if orientation in (2, 4, 5, 7) else turned)


def turned_extras(extras: Mapping[str, Any], orientation: int) -> dict[str, Any]:
    """Return what changes in extras where an image is turned as an EXIF orientation says."""
    found: dict[str, Any] = {}
    if orientation > 4:
        found |= {key: extras[key][::-1] for key in ("dpi", "per_unit") if key in extras}
    if tags := extras.get("tags"):
        found["tags"] = without_place(tags)
    return found


def without_declarations(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return extras without what only the first page of a file says."""
    text = {key: words for key, words in extras.get("text", {}).items() if key != "Description"}
    return {**{key: value for key, value in extras.items() if key != "imagej"}, "text": text}


def placed_extras(extras: Mapping[str, Any], absent: int) -> dict[str, Any]:
    """Return of the extras of an image what is true of its mask, too, of which `absent` is the value without data."""
    found: dict[str, Any] = {key: extras[key] for key in ("dpi", "per_unit", "orientation") if key in extras}
    if tags := mask_tags(extras.get("tags", ()), absent):
        found["tags"] = tags
    if DECLARES.match(words := _words(extras)) and "separate" not in extras:
        found["text"] = {"Description": words}
    return found


def lost_extras(extras: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return in words which extras a file of the format of that name cannot hold."""
    lost = []
    if left := extras.get("tags_left_out"):
        lost.append(f"tags left out: {first_of(left)}")
    if name != "TIFF":
        lost += ["axes left out, which only .tif holds"] if DECLARES.match(_words(extras)) else []
        lost += ["GeoTIFF tags left out, which only .tif holds"] if has_place(extras.get("tags", ())) else []
        lost += ["colour table left out, which only .tif holds"] if "colormap" in extras else []
    if name != "PNG" and (chunks := extras.get("png")):
        lost.append(f"{', '.join(key.decode() for key, _ in chunks)} of PNG left out")
    return tuple(lost)


def _words(extras: Mapping[str, Any]) -> str:
    return extras.get("text", {}).get("Description", "")


def save_options(name: str, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return extras as Pillow's `save` takes them for a format."""
    options = {key: extras[key] for key in ("icc_profile", "dpi", "exif") if key in extras}
    text = extras.get("text", {})
    if name == "JPEG":
        if max(options.get("dpi", (0,))) > LARGEST_DPI[0]:
            del options["dpi"]
        if len(options.get("exif", b"")) > LARGEST_EXIF:
            del options["exif"]
        if "Comment" in text:
            options["comment"] = text["Comment"].encode()[:LARGEST_EXIF]
    elif name == "PNG" and (text or "png" in extras):
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        for key, content in extras.get("png", ()):
            options["pnginfo"].add(key, content)
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

    def resolution() -> dict[str, Any]:
        unit = int(page.tags.valueof("ResolutionUnit", 2))
        if unit not in (1, 2, 3) or "XResolution" not in page.tags or "YResolution" not in page.tags:
            return {}
        scale = 2.54 if unit == 3 else 1.0  # centimetres
        fractions = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
        if not all(below for _, below in fractions) or (unit == 1 and fractions == [(1, 1), (1, 1)]):
            return {}  # not told
        across, down = (scale * above / below for above, below in fractions)
        return {"per_unit" if unit == 1 else "dpi": _resolution((across, down))}

    def text() -> dict[str, Any]:
        found = {key: str(page.tags.valueof(tag)) for key, tag in TEXT_TAGS.items() if page.tags.valueof(tag)}
        if DECLARES.match(found.get("Description", "")):
            del found["Description"]  # see `tiff_layout`
        return {"text": found} if found else {}

    def profile() -> dict[str, Any]:
        return _profile(page.tags.valueof("InterColorProfile"))

    return _gather(
        resolution=resolution,
        profile=profile,
        text=text,
        tags=lambda: carried_tags(page),
        labels=lambda: imagej_tags(page),
    )


def tiff_options(extras: Mapping[str, Any], dtype: np.dtype | None = None) -> dict[str, Any]:
    """Return extras as tifffile writes them with samples of a type; of EXIF the words that TIFF has tags for."""
    options: dict[str, Any] = {"iccprofile": extras.get("icc_profile"), "software": False, "metadata": None}
    if "dpi" in extras:
        options |= {"resolution": tuple(map(float, extras["dpi"])), "resolutionunit": 2}
    elif "per_unit" in extras:
        options |= {"resolution": extras["per_unit"], "resolutionunit": 1}
    text = {**_exif_text(extras.get("exif", b"")), **extras.get("text", {})}
    tags = [(ORIENTATION, 3, 1, extras["orientation"], True)] if "orientation" in extras else []
    for key, tag in TEXT_TAGS.items():
        words = text.get(key, "")
        if dtype is not None and key == "Description" and "OME>" in words[-10:]:
            words = ome.of_type(words, dtype)
        words = words.encode()
        if words and key == "Description":
            options["description"] = words
        elif words:
            tags.append((tag, 2, len(words) + 1, words + b"\0", True))
    return {**options, "extratags": [*tags, *written_tags(extras)]}


def _exif_text(content: bytes) -> dict[str, str]:
    from PIL import Image

    if not content:
        return {}
    exif = Image.Exif()
    exif.load(content)
    return {key: exif[tag] for key, tag in TEXT_TAGS.items() if isinstance(exif.get(tag), str)}
