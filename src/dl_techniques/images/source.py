"""What is common to all image files: the content of one, and an open file of any format."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import numpy as np

from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.images.formats import DEEP, MAX_PIXELS, ImageFormat
from dl_techniques.images.metadata import broken_parts

# Which samples of a pixel are channels: all where there are so many; all that the file does not call alpha; or, where
# `None`, one or three of at most four.
Channels = int | Literal["declared"] | None

SAMPLES = 4  # a pixel, which `max_pixels` allows for


@dataclass(frozen=True)
class Picture:
    """The content of an image file, or of a page of it.

    Attributes:
        pixels: `(height, width, channels)`, uint8, uint16, float32 or float64; 1 (grey) or 3 (RGB) channels, or as many
            as were asked for.
        alpha: `(height, width)` of the same type, `None` where the file has none.
        notes: What was converted, in words.
        extras: Colour profile, resolution, EXIF and words; see `metadata`.
        palette: `(entries, 3)`, uint8, where the pixels are indices of it.
        orientation: EXIF orientation of the samples in the file, 2 to 8 where they were turned upright.
        bits: Bits of a sample where raw values have fewer than 8; 0 elsewhere.
        valid: Of the shape of `pixels`, bool: whether the file says that a sample is one; `None` where all are.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
    palette: np.ndarray | None = None
    orientation: int = 1
    bits: int = 0
    valid: np.ndarray | None = None

    @property
    def samples(self) -> np.ndarray:
        """Channels and alpha, `(height, width, samples)`."""
        return self.pixels if self.alpha is None else np.concatenate([self.pixels, self.alpha[..., None]], axis=-1)


class Decoded(NamedTuple):
    """A page as its file has it: `(height, width[, samples])`, upright, and which of the samples is alpha, if any.

    The orientation is that of the samples in the file. Where `declared`, the file says that all samples but alpha are
    channels; `valid`, of the array's shape, says which of them hold data.
    """

    array: np.ndarray
    notes: tuple[str, ...] = ()
    extras: Mapping[str, Any] = {}
    alpha: int | None = None
    orientation: int = 1
    declared: bool = False
    valid: np.ndarray | None = None


class Raster(Protocol):
    """An image of which windows are read, `raster[top:bottom, left:right]`, not turned upright.

    Attributes:
        path: The file.
        shape: Height, width and samples.
        dtype: Of the samples.
        cache: Bytes of decoded parts that are kept for the next window.
        block_bytes: Bytes of what is decoded at once.
        extras: What the file says besides its samples; see `metadata`.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    cache: int

    @property
    def block_bytes(self) -> int: ...
    @property
    def extras(self) -> dict[str, Any]: ...
    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray: ...


class ImageSource(ABC):
    """An open image file of one or several pages, used by one thread at a time.

    A format implements `_shape` and `_decode`, and of the others what it has.

    Args:
        path: For messages.
        file: Its content, at the beginning.
        format: Its row in the table of formats.
        max_pixels: Larger images are refused before they are decoded.

    Attributes:
        channels_apart: Set before anything is asked: planes that are channels of one image count as images.
    """

    def __init__(self, path: Path, file: BinaryIO, format: ImageFormat, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.file, self.format, self.max_pixels = path, file, format, max_pixels
        self.channels_apart = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file its images are, in words, where that had to be chosen."""
        return ()

    @cached_property
    def count(self) -> int:
        """Number of pages.

        Raises:
            FileError: The file is broken.
        """
        with reading_errors(self.path):
            count = self._count()
            if count < 1:
                raise ValueError("it holds no image")
            return count

    @property
    def is_coloured(self) -> bool:
        """Whether the first page holds red, green and blue, not channels of any other kind."""
        return self.shape()[2] > 2  # with alpha, or the fourth ink

    @property
    def can_read_windows(self) -> bool:
        """Whether `windows` reads parts of the image."""
        return self.format.windows and self.count == 1

    def windows(self, cache: int) -> Raster:
        """Return the only page as an array of which windows are read, with so many bytes kept for the next window.

        Raises:
            FileError: The file is broken, or cannot be read in parts.
        """
        with reading_errors(self.path):
            return self._windows(cache)

    def shape(self, page: int = 0) -> tuple[int, int, int]:
        """Return height, width and samples a pixel of a page before it is turned upright, without decoding it.

        Raises:
            FileError: The file is broken.
        """
        with reading_errors(self.path):
            shape = self._shape(page)
            if not all(isinstance(size, int) and size > 0 for size in shape):
                raise ValueError(f"its size is {shape[1]}x{shape[0]} pixels of {shape[2]} samples")
            return shape

    def read(self, page: int | None = None, channels: Channels = None, raw_values: bool = False) -> Picture:
        """Read a page, upright.

        Args:
            page: From 0; if `None`, the file must have but one.
            channels: Where the file has as many samples a pixel, all are channels and none is alpha; `"declared"`: all
                that the file does not call alpha, however many; `None`: grey or RGB, and alpha what is beyond.
            raw_values: Give the values that masks are painted with: indices of a palette, samples of 1, 2 and 4 bits as
                they are.

        Raises:
            FileError: The page is not there, broken, too large, or of a kind that is not read.
        """
        if page is None and self.count > 1:
            reason = f"holds {self.count} pages, not one image."
            raise FileError(str(self.path), reason, "Save the pages as separate files.")
        if page is not None and page not in range(self.count):
            raise FileError(str(self.path), f"holds {self.count} pages, no page {page + 1}.", "Was it changed?")
        height, width, samples = self.shape(page or 0)
        if height * width * max(1.0, samples / SAMPLES) > self.max_pixels:
            each = f" of {samples} samples" if samples > SAMPLES else ""
            reason = f"has {width}x{height} pixels{each}, more than the {self.max_pixels} allowed."
            remedy = "Crop it, or allow more: --max-pixels of `convunext predict` and `denoise`."
            raise FileError(str(self.path), reason, remedy)
        with reading_errors(self.path):
            if raw_values and (indices := self._indices(page or 0)):
                picture = indices
            else:
                decoded = self._decode(page or 0)
                picture = replace(_picture(decoded, channels), orientation=decoded.orientation)
            decoded_size = picture.pixels.shape[:2]
            if sorted(decoded_size) != sorted((height, width)):  # it may have been turned
                raise ValueError(f"it declares {width}x{height} pixels and gives {decoded_size[1]}x{decoded_size[0]}")
            return picture

    def lossy(self, page: int = 0) -> str:
        """Return what the compression of a page is called where its samples are not those that were written."""
        with reading_errors(self.path):
            return self._lossy(page)

    def is_inverted(self, page: int = 0) -> bool:
        """Return whether a page is stored with 0 as white."""
        with reading_errors(self.path):
            return self._is_inverted(page)

    def _count(self) -> int:
        return 1

    @abstractmethod
    def _shape(self, page: int) -> tuple[int, int, int]: ...

    @abstractmethod
    def _decode(self, page: int) -> Decoded: ...

    def _indices(self, page: int) -> Picture | None:
        """Return the indices of an image with a palette, or samples of few bits as they are."""
        return None

    def _lossy(self, page: int) -> str:
        return "" if self.format.lossless else self.format.name

    def _is_inverted(self, page: int) -> bool:
        return False

    def _windows(self, cache: int) -> Raster:
        raise NotImplementedError


@contextlib.contextmanager
def reading_errors(path: Path, deed: str = "read", remedy: str = "Copy or export it again.") -> Iterator[None]:
    """Turn whatever is raised while a file is read, written or computed into a `FileError` that names it.

    The errors of decoders and writers have no class in common: what is meant for one file must not end a batch.
    """
    try:
        yield
    except ConvUNextError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and deed == "read":
            raise FileError(str(path), "does not exist.", "Check the path.") from error
        if isinstance(error, MemoryError):
            raise FileError(str(path), "needs more memory than there is.", "Crop it, or free some.") from error
        said = str(error).rstrip(".") or type(error).__name__
        raise FileError(str(path), f"cannot be {deed}: {said}.", remedy) from error


def _picture(decoded: Decoded, channels: Channels) -> Picture:
    """Separate the alpha channel, and give grey images their channel axis."""
    array, extras, alpha = decoded.array, dict(decoded.extras), decoded.alpha
    notes = (*decoded.notes, *broken_parts(extras))
    array = array[..., None] if array.ndim == 2 else array
    samples: int = array.shape[2] if array.ndim == 3 else 0
    asked = channels
    if channels != "declared" and not decoded.declared:
        alpha = None  # a guess of the format, or of the file
    elif alpha is None:
        channels = samples
    known = samples in (asked, 1, 2, 3, 4) or alpha is not None or (samples == channels and not isinstance(asked, int))
    if array.dtype.name not in DEEP or array.size == 0 or not known:
        wanted = "are neither grey nor RGB" + (f", nor of {asked} channels" if asked not in (None, 1, 3) else "")
        raise ValueError(f"{array.dtype.name} samples of shape {array.shape} {wanted}")
    if samples == channels:
        chosen, beyond = list(range(samples)), None
    elif alpha is not None:
        chosen, beyond = [n for n in range(samples) if n != alpha], alpha
    else:
        colours = samples - (samples % 2 == 0)
        chosen, beyond = list(range(colours)), colours if samples > colours else None
    valid = None if decoded.valid is None else decoded.valid.reshape(array.shape)[..., chosen]
    pixels = np.ascontiguousarray(array if len(chosen) == samples else array[..., chosen])
    return Picture(pixels, None if beyond is None else array[..., beyond], notes, extras, valid=valid)
