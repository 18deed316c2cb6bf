"""Image files to arrays and back, with a clear refusal of what is not a whole image.

Pillow reads and writes what it reads faithfully; TIFF goes through tifffile, 16-bit colour PNG through imagecodecs.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.data.formats import FORMATS, MAX_PIXELS, SUFFIXES
from dl_techniques.errors import FileError

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SAMPLE_TYPES = ("uint8", "uint16", "float32", "float64")


@dataclass(frozen=True)
class Picture:
    """The content of an image file.

    Attributes:
        pixels: `(height, width, channels)`, 1 (grey) or 3 (RGB) channels, uint8, uint16, float32 or float64.
        alpha: `(height, width)` of the same type, `None` where the file has none.
        notes: What was converted on the way, in words.
        extras: Colour profile, EXIF and resolution, as Pillow's `save` takes them.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the files among `paths` and the image files, sorted by name, of the folders among them.

    Raises:
        FileError: A path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileError(str(path), f"holds no image file ({', '.join(SUFFIXES)}).", "Name another folder.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileError(str(path), "does not exist.", "Check the path.")
    return found


def read_gray(path: str | os.PathLike) -> np.ndarray:
    """Read an 8-bit grey image file, `(height, width)`, uint8; see `read_pixels`."""
    return read_pixels(path, 1)[..., 0]


def read_pixels(path: str | os.PathLike, channels: int) -> np.ndarray:
    """Read an 8-bit image file that is grey (`channels=1`) or RGB (`channels=3`) already.

    Returns:
        `(height, width, channels)`, uint8.

    Raises:
        FileError: The file cannot be read, or is of another kind; the message names it.
    """
    picture = read_image(path)
    word = {1: "8-bit grey", 3: "8-bit RGB"}[channels]
    if picture.pixels.dtype != np.uint8 or picture.pixels.shape[2] != channels or picture.alpha is not None:
        found = {1: "grey", 3: "RGB"}[picture.pixels.shape[2]] + (" with alpha" if picture.alpha is not None else "")
        raise FileError(str(path), f"is {picture.pixels.dtype} {found}, not {word}.", f"Convert it to {word}.")
    return picture.pixels


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a grey or colour image of 8 or 16 bits or floats, upright, with its alpha apart.

    Args:
        path: A file in one of `FORMATS`.
        max_pixels: Refuse larger images before they are decoded.

    Raises:
        FileError: The file is missing, broken, too large, animated, or of a kind that is not read; it is named.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        with open(path, "rb") as head:
            if head.read(4) in TIFF_MAGIC:
                return _read_tiff(path, max_pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            with Image.open(path, formats=FORMATS) as file:
                _check_size(path, file.size, max_pixels)
                if (frames := getattr(file, "n_frames", 1)) > 1:
                    reason = f"holds {frames} frames, not one image."
                    raise FileError(str(path), reason, "Save the frames as files of their own.")
                return _read_with_pillow(path, file)
    except FileNotFoundError as error:
        raise FileError(str(path), "does not exist.", "Check the path.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FileError(str(path), f"is not an image in one of {', '.join(FORMATS)}.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise FileError(str(path), f"has {width}x{height} pixels, more than the {max_pixels} allowed.", "Crop it.")


def _read_with_pillow(path: Path, file) -> Picture:
    from PIL import ImageOps

    extras = {key: file.info[key] for key in ("icc_profile", "dpi") if key in file.info}
    raw_mode = str(file.tile[0].args) if file.tile else ""
    if ";16B" in raw_mode and file.mode != "I;16":  # Pillow would give 8 of the 16 bits
        import imagecodecs

        return _split(np.asarray(imagecodecs.png_decode(path.read_bytes())), (), extras)
    upright = ImageOps.exif_transpose(file)
    notes = ["turned upright as its EXIF says"] if file.getexif().get(0x0112, 1) != 1 else []
    if exif := upright.getexif():
        extras["exif"] = exif.tobytes()
    if upright.mode == "P":
        upright = upright.convert("RGBA" if "transparency" in file.info else "RGB")
        notes.append("palette expanded")
    elif upright.mode == "1":
        upright = upright.convert("L")
    elif upright.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{upright.mode} converted to RGB")
        upright = upright.convert("RGB")
        extras.pop("icc_profile", None)  # it described the other colours
    return _split(np.asarray(upright), tuple(notes), extras)


def _read_tiff(path: Path, max_pixels: int) -> Picture:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1:
                reason = f"holds {len(file.pages)} pages, not one image."
                raise FileError(str(path), reason, "Save the pages as files of their own.")
            page: Any = file.pages[0]
            _check_size(path, (page.imagewidth, page.imagelength), max_pixels)
            array = page.asarray()
            notes = []
            if page.photometric.name == "PALETTE":
                array = np.moveaxis(page.colormap, 0, -1)[array]
                notes.append("palette expanded")
            elif page.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
                array = np.iinfo(array.dtype).max - array
            elif page.photometric.name not in ("MINISBLACK", "RGB"):
                raise FileError(str(path), f"is a {page.photometric.name} TIFF.", "Convert it to grey or RGB.")
    except (tifffile.TiffFileError, RuntimeError, KeyError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error
    if array.dtype == np.bool_:
        array = np.uint8(255) * array
    return _split(array, tuple(notes), {})


def _split(array: np.ndarray, notes: tuple[str, ...], extras: dict[str, Any]) -> Picture:
    """Take the alpha channel off and give grey images their channel axis."""
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:
        array = array.astype(np.uint16)  # Pillow's mode "I"
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.name not in SAMPLE_TYPES or array.ndim != 3 or not 1 <= array.shape[2] <= 4 or array.size == 0:
        raise ValueError(f"{array.dtype.name} samples of shape {array.shape} are neither grey nor RGB")
    colours = array.shape[2] - (array.shape[2] % 2 == 0)
    alpha = array[..., colours] if array.shape[2] > colours else None
    return Picture(np.ascontiguousarray(array[..., :colours]), alpha, notes, extras)


def write_image(path: Path, picture: Picture) -> None:
    """Write an image in the format of the path's suffix, whole or not at all.

    Raises:
        FileError: The format cannot hold these samples, or the file cannot be written.
    """
    array = picture.pixels
    if picture.alpha is not None:
        array = np.concatenate([array, picture.alpha[..., None]], axis=-1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    suffix = path.suffix.lower()
    buffer = io.BytesIO()
    if suffix in (".tif", ".tiff"):
        import tifffile

        extra: dict[str, Any] = {"extrasamples": ["unassalpha"]} if picture.alpha is not None else {}
        photometric = "minisblack" if picture.pixels.shape[2] == 1 else "rgb"
        tifffile.imwrite(buffer, array, photometric=photometric, compression="zlib", **extra)
    elif suffix == ".png" and array.dtype == np.uint16:
        import imagecodecs

        buffer.write(imagecodecs.png_encode(array))
    elif suffix in SUFFIXES and array.dtype == np.uint8:
        from PIL import Image

        if picture.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
            raise FileError(str(path), f"{suffix} files hold no alpha.", "Choose .png or .tif.")
        options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
        form = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(suffix, "PNG")
        Image.fromarray(array).save(buffer, format=form, **options, **picture.extras)
    else:
        raise FileError(str(path), f"cannot hold {array.dtype.name} samples.", "Choose .tif, or .png up to 16 bits.")
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either the old content or the new is there, whole.

    Raises:
        FileError: There is no room or no permission; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FileError(str(path), f"cannot be written: {error.strerror}.", "Free some space.") from error


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Return samples of an integer type as float32, its largest value as 1."""
    return pixels.astype("float32") / np.float32(np.iinfo(pixels.dtype).max)
