"""Files that Pillow reads and writes: PNG, JPEG, WebP, BMP, AVIF and JPEG 2000; by imagecodecs where it loses bits."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dl_techniques.errors import FileError
from dl_techniques.images.codestreams import png_is_complete, sample_bits
from dl_techniques.images.colours import cmyk_to_rgb
from dl_techniques.images.metadata import (
    ORIENTATION,
    apply_orientation,
    file_extras,
    mend_exif,
    save_options,
    with_extras,
)
from dl_techniques.images.source import Decoded, ImageSource, Picture

BITS = {"L;2": 2, "L;4": 4}  # of samples that Pillow spreads over 0 to 255
OPTIONS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}


class Source(ImageSource):
    """An open file of one image."""

    @cached_property
    def _image(self) -> Any:
        from PIL import Image, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
                image = Image.open(self.file, formats=[self.format.name])
        except UnidentifiedImageError as error:
            reason = f"begins like {self.format.name} but is not a valid image."
            raise FileError(str(self.path), reason, "Copy or export it again.") from error
        except Image.DecompressionBombError as error:  # Pillow's own limit, beyond which it opens nothing
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            remedy = "Crop it, or save it as TIFF, which `convunext predict` reads in parts."
            raise FileError(str(self.path), f"has more pixels than the {limit} that can be decoded.", remedy) from error
        self._raw_mode = str(image.tile[0].args) if image.tile else ""  # gone once it is decoded
        return image

    def _shape(self, page: int) -> tuple[int, int, int]:
        image = self._image
        return image.size[1], image.size[0], 3 if image.mode == "P" else len(image.getbands())

    def _indices(self, page: int) -> Picture | None:
        mode = self._still.mode
        bits = 1 if mode == "1" else BITS.get(self._raw_mode, 0)
        if mode != "P" and not bits:
            return None
        values = np.asarray(self._upright(self._still)).astype("uint8")[..., None]
        if mode == "P":
            palette = np.reshape(self._still.getpalette("RGB") or [], (-1, 3)).astype("uint8")
            return Picture(values, palette=palette, orientation=self._orientation)
        if mode != "1":
            values //= 255 // (2**bits - 1)
        return Picture(values, orientation=self._orientation, bits=bits)

    def _lossy(self, page: int) -> str:
        if self.format.name != "WEBP":
            return super()._lossy(page)
        place = 12
        while True:  # chunks, of which one holds the image
            self.file.seek(place)
            name, size = struct.unpack("<4sI", self.file.read(8))
            if name in (b"VP8 ", b"VP8L", b"ANMF"):
                return "lossy WEBP" if name == b"VP8 " else ""
            place += 8 + size + size % 2

    @property
    def _orientation(self) -> int:
        """EXIF orientation, 1 to 8; all else is none."""
        found = self._still.getexif().get(ORIENTATION, 1)
        return found if found in range(1, 9) else 1

    @cached_property
    def _still(self) -> Any:
        self._notes = mend_exif(self._image)
        frames = getattr(self._image, "n_frames", 1)
        if frames > 1 and self._image.format == "MPO":  # a camera's, with previews
            self._notes += (f"the first of {frames} frames",)
        elif frames > 1:
            reason = f"holds {frames} frames, not one image."
            raise FileError(str(self.path), reason, "Save the frames as separate files.")
        return self._image

    def _upright(self, image: Any) -> Any:
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)
        if self.format.name == "PNG" and not self._has_last_row(image):
            raise EOFError("its compressed data end before the last row")
        return upright

    def _has_last_row(self, image: Any) -> bool:
        """Return whether the data of a PNG reach its last row, which Pillow leaves at 0 otherwise."""
        width, height = image.size
        if not image.info.get("interlace") and np.asarray(image.crop((0, height - 1, width, height))).any():
            return True
        self.file.seek(0)
        return png_is_complete(self.file)

    def _decode(self, page: int) -> Decoded:
        file = self._still
        upright, orientation = self._upright(file), self._orientation
        extras = file_extras(file, upright, self.file)
        notes = list(self._notes)
        if orientation != 1:
            notes.append("rotated upright according to EXIF")
        if (deep := self._decode_deep()) is not None:
            array = apply_orientation(deep, orientation)
        elif upright.mode == "CMYK":
            array, note = cmyk_to_rgb(np.asarray(upright), extras.pop("icc_profile", None))
            notes.append(note)
        else:
            if upright.mode == "P":
                upright = upright.convert("RGBA" if "transparency" in file.info else "RGB")
                notes.append("palette expanded")
            elif upright.mode == "1":
                upright = upright.convert("L")
            elif upright.mode in ("YCbCr", "LAB", "HSV"):
                notes.append(f"{upright.mode} converted to RGB")
                upright = upright.convert("RGB")
                extras.pop("icc_profile", None)  # it described the other colours
            array = np.asarray(upright)
            if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:
                array = array.astype(np.uint16)  # Pillow's mode "I"
        alpha = array.shape[2] - 1 if array.ndim == 3 and array.shape[2] % 2 == 0 else None
        return Decoded(array, tuple(notes), extras, alpha, orientation)

    def _decode_deep(self) -> np.ndarray | None:
        """Return the samples of an image of which Pillow gives 8 bits of more."""
        import imagecodecs

        self.file.seek(0)
        if ";16B" in self._raw_mode and self._still.mode != "I;16":
            return np.asarray(imagecodecs.png_decode(self.file.read()))
        if self.format.name == "JPEG2000" and sample_bits(content := self.file.read()) != 8:
            return np.asarray(imagecodecs.jpeg2k_decode(content))
        if self.format.name == "AVIF" and (bits := sample_bits(content := self.file.read())) > 8:
            samples = imagecodecs.avif_decode(content).astype("float64")
            return np.rint(samples * (65535 / (2**bits - 1))).astype("uint16")
        return None


def write(file: BinaryIO, path: Path, name: str, pictures: Iterable[Picture]) -> None:
    """Write one image in the format of that name."""
    from PIL import Image

    (picture,) = pictures
    array = picture.samples
    array = array[..., 0] if array.shape[2] == 1 else array
    if array.dtype == np.uint16:
        import imagecodecs

        file.write(with_extras(bytes(imagecodecs.png_encode(array)), picture.extras))
        return
    image = Image.fromarray(array)
    if picture.palette is not None:
        image.putpalette(picture.palette.ravel().tolist())
    image.save(file, format=name, **OPTIONS.get(name, {}), **save_options(name, picture.extras))
