"""Image files to arrays and back, whatever their format; what is not an image is refused by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.atomic import staged_file
from dl_techniques.errors import FileError, first_of, printable
from dl_techniques.images.formats import HEAD, MAX_PIXELS, ImageFormat, first_suffix, format_of, recognize, suffixes
from dl_techniques.images.source import Channels, ImageSource, Picture, Raster, reading_errors

if TYPE_CHECKING:
    from rich.console import Console


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the files among `paths` and the image files, sorted by name, of the folders among them.

    Hidden files are passed over; see `print_left_out` for others.

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
        inside, others, _ = _sort_out(path)
        if not inside:
            also = f"; {_other_kinds(others)}" if others else ""
            raise FileError(str(path), f"holds no image file ({', '.join(suffixes())}){also}.", "Name another folder.")
        return inside
    if not path.exists():
        raise FileError(str(path), "does not exist.", "Check the path.")
    return [path]


def _sort_out(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the image files of a folder, the files of other kinds, and what is no file: pipes, sockets, devices."""
    images, others, special = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry)
            if entry.name.startswith(".") or entry.is_dir():
                continue
            if not entry.is_file() and path.exists():
                special.append(path)
            else:
                (others if format_of(path) is None else images).append(path)
    return sorted(images), sorted(others), sorted(special)


def _other_kinds(others: Sequence[Path]) -> str:
    kinds = list(dict.fromkeys(path.suffix.lower() or path.name for path in others))
    count = "1 file of another kind" if len(others) == 1 else f"{len(others)} files of other kinds"
    return f"{count} left out: {first_of(kinds)}"


def print_left_out(console: Console, *sources: str | os.PathLike | None) -> None:
    """Print what those of the sources that are folders hold besides images: files of other kinds, pipes, devices."""
    for folder in (Path(source) for source in sources if source and os.path.isdir(source)):
        with contextlib.suppress(OSError):  # raised again where its images are looked for
            _, others, special = _sort_out(folder)
            said = [_other_kinds(others)] if others else []
            if special:
                said.append(f"pipes, sockets or devices left out: {first_of([path.name for path in special])}")
            for words in said:
                console.print(printable(f"note: {folder}: {words}"), markup=False)


@contextlib.contextmanager
def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Iterator[ImageSource]:
    """Open an image file once, for all that is asked of it.

    Args:
        path: The file; its first bytes tell its format, not its name.
        max_pixels: Refuse larger images before they are decoded.

    Raises:
        FileError: The file is missing, may not be read, or is no image.
    """
    path = Path(path)
    with reading_errors(path):
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise FileError(str(path), "is a pipe, socket or device, not a file.", "Save its content as a file.")
        file = open(path, "rb")  # noqa: SIM115 - closed below, where errors are not those of opening
    with file:
        with reading_errors(path):
            row = recognize(file.read(HEAD), path)
            file.seek(0)
            source = import_module(row.module).Source(path, file, row, max_pixels)
        yield source


@contextlib.contextmanager
def open_windows(path: str | os.PathLike, cache: int = 2**26) -> Iterator[Raster]:
    """Open an image file to read windows of it; see `ImageSource.windows`.

    Raises:
        FileError: The file is broken, or cannot be read in parts.
    """
    with open_image(path) as source:
        yield source.windows(cache)


def read_image(
    path: str | os.PathLike, max_pixels: int = MAX_PIXELS, channels: Channels = None, page: int | None = None
) -> Picture:
    """Read an image, upright, with its alpha apart; see `ImageSource.read`.

    Raises:
        FileError: The file is missing, broken, too large, or of a kind that is not read; it is named.
    """
    with open_image(path, max_pixels) as source:
        return source.read(page, channels)


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


def image_shape(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return height, width and samples a pixel of a file's first image before it is turned, without decoding it.

    Raises:
        FileError: It cannot be read.
    """
    with open_image(path) as source:
        return source.shape()


def write_image(path: Path, picture: Picture) -> None:
    """Write an image in the format of the path's suffix; see `write_images`."""
    write_images(path, [picture])


def write_images(path: Path, pictures: Iterable[Picture], count: int | None = None) -> None:
    """Write images as the pages of a file in the format of its suffix; it appears when it is complete.

    Args:
        path: Where to.
        pictures: Each is taken when those before it are written.
        count: How many there are, where `pictures` has no length.

    Raises:
        FileError: The format cannot hold them, or the file cannot be written.
    """
    if count is None:
        pictures = list(pictures)
        count = len(pictures)
    row = _format_for(path, count)
    checked = (_checked(picture, row, path) for picture in pictures)
    with reading_errors(path, "written", "Choose another format."), staged_file(path) as file:
        import_module(row.module).write(file, path, row.name, checked)


def _format_for(path: Path, count: int) -> ImageFormat:
    row = format_of(path)
    if row is None:
        raise FileError(str(path), f"ends in no suffix of image files ({', '.join(suffixes())}).", "Choose one.")
    if not row.dtypes:
        raise FileError(str(path), f"would be {row.name}, which is only read.", "Choose .tif, or .png up to 16 bits.")
    if count != 1 and not row.pages:
        raise FileError(str(path), f"cannot hold {count} images.", f"Choose {first_suffix(lambda row: row.pages)}.")
    return row


def _checked(picture: Picture, row: ImageFormat, path: Path) -> Picture:
    if picture.pixels.dtype.name not in row.dtypes:
        remedy = "Choose .tif, or .png up to 16 bits."
        raise FileError(str(path), f"cannot hold {picture.pixels.dtype} samples.", remedy)
    if not row.alpha and picture.alpha is not None:
        raise FileError(str(path), f"{path.suffix.lower()} files hold no alpha.", "Choose .png or .tif.")
    return picture


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """Return samples of an integer type as float32, its largest value as 1."""
    return pixels.astype("float32") / np.float32(np.iinfo(pixels.dtype).max)
