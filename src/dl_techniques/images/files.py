"""Image files to arrays and back, with a clear refusal of what is not a whole image.

Pillow reads and writes what it reads faithfully; TIFF goes through tifffile, 16-bit colour PNG through imagecodecs.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError
from dl_techniques.images import tiff
from dl_techniques.images.colours import cmyk_to_rgb
from dl_techniques.images.formats import FORMATS, MAX_PIXELS, SUFFIXES
from dl_techniques.images.metadata import ORIENTATION, file_extras, save_options, turned_upright, with_extras

SAMPLE_TYPES = ("uint8", "uint16", "float32", "float64")

# Which samples of a pixel are channels: all where there are so many; all that the file does not call alpha; or, where
# `None`, one or three of at most four.
Channels = int | Literal["declared"] | None


@dataclass(frozen=True)
class Picture:
    """The content of an image file.

    Attributes:
        pixels: `(height, width, channels)`, uint8, uint16, float32 or float64; 1 (grey) or 3 (RGB) channels, or as many
            as were asked for.
        alpha: `(height, width)` of the same type, `None` where the file has none.
        notes: What was converted on the way, in words.
        extras: Colour profile, resolution, EXIF and words; see `metadata`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the files among `paths` and the image files, sorted by name, of the folders among them.

    Raises:
        FileError: A path does not exist or may not be read, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            found += _images_at(path)
        except OSError as error:
            raise FileError(str(path), f"cannot be read: {error.strerror}.", "Ask for permission.") from error
    return found


def _images_at(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise FileError(str(path), f"holds no image file ({', '.join(SUFFIXES)}).", "Name another folder.")
        return inside
    if not path.exists():
        raise FileError(str(path), "does not exist.", "Check the path.")
    return [path]


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


def read_image(
    path: str | os.PathLike, max_pixels: int = MAX_PIXELS, channels: Channels = None, page: int | None = None
) -> Picture:
    """Read an image of 8 or 16 bits or floats, upright, with its alpha apart.

    Args:
        path: A file in one of `FORMATS`.
        max_pixels: Refuse larger images before they are decoded.
        channels: Where the file has as many samples a pixel, all are channels and none is alpha; `"declared"`: all that
            the file does not call alpha, however many; `None`: grey or RGB, and alpha what is beyond.
        page: Page of a TIFF, from 0; if `None`, it must have but one.

    Raises:
        FileError: The file is missing, broken, too large, animated, or of a kind that is not read; it is named.
    """
    path = Path(path)
    with _refusals(path):
        if is_tiff(path):
            (picture,) = _read_tiff(path, max_pixels, channels, single=page is None, only=page)
            return picture
        return _read_with_pillow(path, max_pixels, channels)


def read_images(path: str | os.PathLike, max_pixels: int = MAX_PIXELS, channels: Channels = None) -> Iterator[Picture]:
    """Yield the images of a file: the pages of a TIFF, or the one that it holds; see `read_image`."""
    path = Path(path)
    with _refusals(path):
        if not is_tiff(path):
            yield _read_with_pillow(path, max_pixels, channels)
            return
        yield from _read_tiff(path, max_pixels, channels, single=False)


def count_images(path: str | os.PathLike) -> int:
    """Return the number of images in a file: the pages of a TIFF; 1 for all others and for what cannot be read."""
    try:
        return tiff.count_pages(Path(path)) if is_tiff(Path(path)) else 1
    except (OSError, FileError):
        return 1


def image_shape(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return height, width and samples a pixel of a file's first image, before it is turned, from its head alone.

    Raises:
        FileError: It cannot be read.
    """
    from PIL import Image

    path = Path(path)
    with _refusals(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if is_tiff(path):
            return tiff.page_shape(path)
        with Image.open(path, formats=FORMATS) as file:
            return file.size[1], file.size[0], 3 if file.mode == "P" else len(file.getbands())


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as TIFF files do.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as head:
        return head.read(4) in tiff.MAGIC


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Say in our words what is wrong with a file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except FileNotFoundError as error:
        raise FileError(str(path), "does not exist.", "Check the path.") from error
    except UnidentifiedImageError as error:
        remedy = "Save it in one of them, or leave it out."
        raise FileError(str(path), f"is not an image in one of {', '.join(FORMATS)}.", remedy) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, beyond which it opens nothing
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        remedy = "Crop it, or save it as TIFF, which `convunext predict` reads in parts."
        raise FileError(str(path), f"has more pixels than the {limit} that can be decoded.", remedy) from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # the decoder of 16-bit PNG raises the last
        raise FileError(str(path), f"cannot be read: {error}.", "Copy or export it again.") from error


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        remedy = "Crop it, or allow more: --max-pixels of `convunext predict` and `denoise`."
        raise FileError(str(path), f"has {width}x{height} pixels, more than the {max_pixels} allowed.", remedy)


def _read_with_pillow(path: Path, max_pixels: int, channels: Channels) -> Picture:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
        with Image.open(path, formats=FORMATS) as file:
            _check_size(path, file.size, max_pixels)
            if (frames := getattr(file, "n_frames", 1)) > 1:
                reason = f"holds {frames} frames, not one image."
                raise FileError(str(path), reason, "Save the frames as files of their own.")
            return _decode(path, file, channels)


def _decode(path: Path, file, channels: Channels) -> Picture:
    from PIL import ImageOps

    raw_mode = str(file.tile[0].args) if file.tile else ""
    upright, orientation = ImageOps.exif_transpose(file), file.getexif().get(ORIENTATION, 1)
    extras = file_extras(file, upright)
    notes = ["turned upright as its EXIF says"] if orientation != 1 else []
    if ";16B" in raw_mode and file.mode != "I;16":  # Pillow gives 8 of the 16 bits
        import imagecodecs

        array = turned_upright(np.asarray(imagecodecs.png_decode(path.read_bytes())), orientation)
        return _split(array, tuple(notes), extras, channels)
    if upright.mode == "P":
        upright = upright.convert("RGBA" if "transparency" in file.info else "RGB")
        notes.append("palette expanded")
    elif upright.mode == "1":
        upright = upright.convert("L")
    elif upright.mode == "CMYK":
        rgb, note = cmyk_to_rgb(np.asarray(upright), extras.pop("icc_profile", None))
        return _split(rgb, (*notes, note), extras, channels)
    elif upright.mode in ("YCbCr", "LAB", "HSV"):
        notes.append(f"{upright.mode} converted to RGB")
        upright = upright.convert("RGB")
        extras.pop("icc_profile", None)  # it described the other colours
    return _split(np.asarray(upright), tuple(notes), extras, channels)


def _read_tiff(
    path: Path, max_pixels: int, channels: Channels, single: bool, only: int | None = None
) -> Iterator[Picture]:
    pages = tiff.read_pages(path, lambda size: _check_size(path, size, max_pixels), single, only)
    for array, notes, extras, alpha in pages:
        if channels == "declared":
            samples = 1 if array.ndim == 2 else array.shape[2]
            yield _split(array, notes, extras, samples if alpha is None else None, alpha)
        else:
            yield _split(array, notes, extras, channels)


def _split(
    array: np.ndarray, notes: tuple[str, ...], extras: dict[str, Any], channels: Channels, alpha: int | None = None
) -> Picture:
    """Take the alpha channel off, `alpha` where the file names it, and give grey images their channel axis."""
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:
        array = array.astype(np.uint16)  # Pillow's mode "I"
    if array.ndim == 2:
        array = array[..., None]
    known = array.ndim == 3 and (array.shape[2] == channels or alpha is not None or 1 <= array.shape[2] <= 4)
    if array.dtype.name not in SAMPLE_TYPES or not known or array.size == 0:
        wanted = "are neither grey nor RGB" + (f", nor of {channels} channels" if channels not in (None, 1, 3) else "")
        raise ValueError(f"{array.dtype.name} samples of shape {array.shape} {wanted}")
    if array.shape[2] == channels:
        return Picture(np.ascontiguousarray(array), None, notes, extras)
    if alpha is not None:
        return Picture(np.delete(array, alpha, axis=2), array[..., alpha], notes, extras)
    colours = array.shape[2] - (array.shape[2] % 2 == 0)
    beyond = array[..., colours] if array.shape[2] > colours else None
    return Picture(np.ascontiguousarray(array[..., :colours]), beyond, notes, extras)


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
        tiff.write_pages(buffer, [_page(picture)])
    elif suffix == ".png" and array.dtype == np.uint16:
        import imagecodecs

        buffer.write(with_extras(bytes(imagecodecs.png_encode(array)), picture.extras))
    elif suffix in SUFFIXES and array.dtype == np.uint8:
        from PIL import Image

        if picture.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
            raise FileError(str(path), f"{suffix} files hold no alpha.", "Choose .png or .tif.")
        options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
        form = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(suffix, "PNG")
        Image.fromarray(array).save(buffer, format=form, **options, **save_options(suffix, picture.extras))
    else:
        raise FileError(str(path), f"cannot hold {array.dtype.name} samples.", "Choose .tif, or .png up to 16 bits.")
    write_file(path, buffer.getvalue())


def write_images(path: Path, pictures: Sequence[Picture]) -> None:
    """Write images as the pages of a TIFF, or the only one in the format of the path's suffix, whole or not at all.

    Raises:
        FileError: The format cannot hold them, or the file cannot be written.
    """
    if len(pictures) == 1:
        write_image(path, pictures[0])
        return
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise FileError(str(path), f"cannot hold {len(pictures)} images.", "Choose .tif.")
    buffer = io.BytesIO()
    tiff.write_pages(buffer, [_page(picture) for picture in pictures])
    write_file(path, buffer.getvalue())


def _page(picture: Picture) -> tiff.Page:
    array = picture.pixels
    if picture.alpha is not None:
        array = np.concatenate([array, picture.alpha[..., None]], axis=-1)
    return tiff.Page(array, picture.pixels.shape[2], picture.extras)


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Return samples of an integer type as float32, its largest value as 1."""
    return pixels.astype("float32") / np.float32(np.iinfo(pixels.dtype).max)
