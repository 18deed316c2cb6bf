"""Damaged image files: counted, measured, read and written again as `convunext denoise` does it."""

from __future__ import annotations

import io
import random
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from dl_techniques.errors import FileError
from dl_techniques.images.files import find_images, open_image, write_images
from dl_techniques.images.formats import format_of
from fuzz import Wrong, damaged

MAX_PIXELS = 4_000_000
PAGES = 8  # of a file that are read


def samples(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Return a gradient with noise, which all codecs store in more than a few bytes."""
    rng = np.random.default_rng(sum(shape))
    grey = np.add.outer(np.arange(shape[-3 if len(shape) > 2 else 0]), np.arange(shape[1 if len(shape) < 4 else 2]))
    grey = grey.reshape(grey.shape + (1,) * max(0, len(shape) - 2)) if len(shape) == 3 else np.zeros(shape)
    return (grey + rng.integers(0, 100, shape)).astype(dtype)


def pillow(form: str, array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """Return a file that Pillow wrote."""
    buffer, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format=form, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """Return a file that tifffile wrote."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def exif() -> bytes:
    """Return EXIF of several types of tags, in two directories."""
    found = Image.Exif()
    found[0x0112], found[0x010F], found[0x011A], found[0x0128] = 6, "Maker", 300.0, 2
    found.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    return found.tobytes()


def words() -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    found.add_text("Author", "somebody", zip=True)
    found.add_itxt("Title", "Ünï")
    return found


GREY, RGB, RGBA = (37, 53), (37, 53, 3), (37, 53, 4)
MAKERS: dict[str, Callable[[], bytes]] = {
    "png-grey": lambda: pillow("PNG", samples(*GREY), dpi=(300, 300)),
    "png-rgb": lambda: pillow("PNG", samples(*RGB), exif=exif(), pnginfo=words()),
    "png-rgba": lambda: pillow("PNG", samples(*RGBA)),
    "png-palette": lambda: pillow("PNG", samples(*RGB), "P"),
    "png-bits": lambda: pillow("PNG", samples(*GREY) > 99),
    "png-16": lambda: pillow("PNG", samples(*GREY, dtype="uint16")),
    "jpeg-grey": lambda: pillow("JPEG", samples(*GREY), dpi=(72, 72)),
    "jpeg-rgb": lambda: pillow("JPEG", samples(*RGB), exif=exif(), comment=b"words"),
    "jpeg-progressive": lambda: pillow("JPEG", samples(*RGB), progressive=True),
    "jpeg-cmyk": lambda: pillow("JPEG", samples(*RGB), "CMYK"),
    "webp": lambda: pillow("WEBP", samples(*RGB), exif=exif()),
    "webp-lossless": lambda: pillow("WEBP", samples(*RGBA), lossless=True),
    "bmp": lambda: pillow("BMP", samples(*RGB)),
    "bmp-palette": lambda: pillow("BMP", samples(*GREY), "P"),
    "avif": lambda: pillow("AVIF", samples(*RGB), exif=exif()),
    "jp2": lambda: pillow("JPEG2000", samples(*RGB)),
    "jp2-16": lambda: bytes(imagecodecs.jpeg2k_encode(samples(*GREY, dtype="uint16"), level=0, codecformat="jp2")),
    "jxl": lambda: bytes(imagecodecs.jpegxl_encode(samples(*RGB))),
    "jpeg-mpo": lambda: pillow("MPO", samples(*RGB), save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    "tiff-grey": lambda: tiff(samples(*GREY), resolution=(300, 300), resolutionunit=2),
    "tiff-rgb": lambda: tiff(samples(*RGB), photometric="rgb", rowsperstrip=8),
    "tiff-16": lambda: tiff(samples(*GREY, dtype="uint16"), byteorder=">"),
    "tiff-float": lambda: tiff(samples(*GREY, dtype="float32"), compression="zlib", predictor=True),
    "tiff-stack": lambda: tiff(samples(4, *GREY[:1], 1)[..., 0], photometric="minisblack", imagej=True),
    "tiff-pages": lambda: tiff(np.stack([samples(*GREY)] * 3), photometric="minisblack", metadata=None),
    "tiff-ome": lambda: tiff(np.stack([samples(*GREY)] * 3), ome=True, metadata={"axes": "ZYX"}),
    "tiff-big": lambda: tiff(samples(*RGB), photometric="rgb", bigtiff=True, tile=(16, 16)),
    "tiff-planar": lambda: tiff(np.stack([samples(*GREY)] * 3), photometric="rgb", planarconfig="separate"),
    "tiff-zlib": lambda: tiff(samples(*RGB), photometric="rgb", compression="zlib", predictor=True, tile=(16, 16)),
    "tiff-lzw": lambda: tiff(samples(*RGB), photometric="rgb", compression="lzw", rowsperstrip=8),
    "tiff-packbits": lambda: tiff(samples(*GREY), compression="packbits"),
    "tiff-zstd": lambda: tiff(samples(*GREY), compression="zstd"),
    "tiff-lzma": lambda: tiff(samples(*GREY), compression="lzma"),
    "tiff-jpeg": lambda: tiff(samples(48, 64, 3), photometric="rgb", compression="jpeg", tile=(16, 32)),
    "tiff-ycbcr": lambda: pillow("TIFF", samples(48, 64, 3), "YCbCr", compression="jpeg"),
    "tiff-jpeg2000": lambda: tiff(samples(*GREY), compression="jpeg2000"),
    "tiff-jpegxl": lambda: tiff(samples(*RGB), photometric="rgb", compression="jpegxl"),
    "tiff-webp": lambda: tiff(samples(*RGB), photometric="rgb", compression="webp"),
    "tiff-png": lambda: tiff(samples(*RGB), photometric="rgb", compression="png"),
    "tiff-lerc": lambda: tiff(samples(*GREY, dtype="float32"), compression="lerc"),
    "tiff-bits": lambda: pillow("TIFF", samples(*GREY) > 99, compression="group4"),
    "tiff-palette": lambda: pillow("TIFF", samples(*RGB), "P"),
    "tiff-cmyk": lambda: pillow("TIFF", samples(*RGB), "CMYK"),
}  # fmt: skip
KINDS = tuple(MAKERS)


@cache
def original(kind: str) -> bytes:
    """Return the file before it is damaged."""
    return MAKERS[kind]()


def suffix(kind: str) -> str:
    """Return the suffix of a kind of file."""
    name = kind.partition("-")[0]
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(name, f".{name}")


def with_checksums(png: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks as they must be, so that damage gets beyond them."""
    data, place = bytearray(png), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(data[: len(png)])


def attempt(kind: str, seed: int, folder: Path) -> str:
    """Count, measure, read and write the pages of a damaged file."""
    rng = random.Random(f"{kind} {seed}")
    path = folder / f"damaged{suffix(kind)}"
    content = damaged(original(kind), rng)
    path.write_bytes(with_checksums(content) if path.suffix == ".png" and rng.random() < 0.7 else content)
    (found,) = find_images([folder])
    pictures = []
    with open_image(found, MAX_PIXELS) as source:
        for page in range(min(source.count, PAGES)):
            height, width, _ = source.shape(page)
            picture = source.read(page, rng.choice((None, "declared", 1, 3)))
            if rng.random() < 0.2:
                source.read(page, raw_values=True)
            if sorted(picture.pixels.shape[:2]) != sorted((height, width)):
                raise Wrong(f"{picture.pixels.shape[:2]} pixels were read of {height}x{width}")
            pictures.append(picture)
        if source.can_read_windows:
            with suppress(FileError):  # of kinds that are not read in parts
                raster = source.windows(2**24)
                raster[0 : min(raster.shape[0], 64), 0 : min(raster.shape[1], 64)]
    drawn = pictures[0].pixels.shape[2] in (1, 3)  # as formats other than TIFF have it
    for ending in (".tif", path.suffix, ".png") if drawn else (".tif",):
        row, output = format_of(Path(f"x{ending}")), folder / f"written{ending}"
        try:
            write_images(output, pictures if row is not None and row.pages else pictures[:1])
        except FileError as error:
            if "cannot be written" in str(error):
                raise Wrong(f"a picture that was read: {error}") from error
    return "done"
