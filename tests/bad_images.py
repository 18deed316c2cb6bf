"""Thirty files that are no images that a grey segmenter can take, each bad in another way."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image


def samples(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 200, shape).astype(dtype)


def encoded(form: str, *shape: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples(*shape)).save(buffer, format=form)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds the beginning of its first row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(width + 1))[:-6]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def flipped(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 255
    return bytes(damaged)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(samples(8, 8) // (n + 1)) for n in range(3)]
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def odd(value: float) -> np.ndarray:
    array = samples(16, 16, dtype="float32")
    array[3, 4] = value
    return array


CONTENTS: dict[str, bytes] = {
    "empty.png": b"",
    "page.png": b"<!doctype html><html><body>404</body></html>",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "truncated-jpg.jpg": encoded("JPEG", 64, 64)[:-900],
    "truncated-png.png": encoded("PNG", 64, 64)[:-2000],
    "flipped.png": flipped(encoded("PNG", 64, 64)),
    "truncated-webp.webp": encoded("WEBP", 64, 64, 3)[:-500],
    "truncated-bmp.bmp": encoded("BMP", 64, 64)[:-1000],
    "truncated-tif.tif": tiff(samples(64, 64))[:1000],
    "zero-width.png": png_of_size(0, 4),
    "bomb.png": png_of_size(30_000, 30_000),
    "hollow.png": png_of_size(12_000, 12_000),  # as many as are allowed, and not there
    "figure.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "stars.tif": b"SIMPLE  =                    T" + b" " * 2850,
    "layers.png": b"8BPS" + struct.pack(">H6sHIIHH", 1, b"", 1, 9, 9, 8, 1) + bytes(90),
    "moving.png": animated(),
    "picture.webp": encoded("GIF", 9, 9),
    "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "complex.tif": tiff(samples(9, 9, dtype="complex64")),
    "signed.tif": tiff(np.full((9, 9), -(2**60))),  # beyond what floats hold
    "print.tif": tiff(samples(9, 9, 4), photometric="separated"),
    "bands.tif": tiff(samples(9, 9, 5), photometric="minisblack", planarconfig="contig"),
    "colour.png": encoded("PNG", 9, 9, 3),
    "nan.tif": tiff(odd(np.nan)),
    "infinite.tif": tiff(odd(np.inf)),
    "enormous.tif": tiff(samples(9, 9).astype("float64") * 1e300),
    "model.png": archive(**{"config.json": json.dumps({"module": "os", "class_name": "system"}).encode()}),
    "zeros.png": archive(**{"../../member": bytes(2**22)}),
    "weights.tif": b"\x89HDF\r\n\x1a\n" + bytes(500),
}
REFUSED = (*CONTENTS, "link.png")


def write_bad_images(folder: Path) -> None:
    """Write all of them into a folder."""
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(folder / "nowhere.png")


def deep_png(folder: Path) -> None:
    (folder / "deep-colour.png").write_bytes(
        imagecodecs.png_encode(np.repeat(samples(16, 16, 1, dtype="uint16"), 3, 2))
    )


def turned_jpeg(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(samples(16, 16)).save(folder / "turned.jpg", exif=exif)


def palette(folder: Path) -> None:
    image = Image.fromarray(samples(16, 16) // 64).convert("P")
    image.putpalette([shade for level in (0, 80, 160, 240) for shade in (level,) * 3])
    image.save(folder / "palette.png")


# What looks odd and is none the less an image.
ODD: tuple[Callable[[Path], object], ...] = (
    deep_png,
    turned_jpeg,
    palette,
    lambda folder: tifffile.imwrite(folder / "stack.tif", samples(3, 16, 16), photometric="minisblack"),
    lambda folder: tifffile.imwrite(folder / "deep.tif", 300 * samples(16, 16, dtype="uint16")),
    lambda folder: tifffile.imwrite(folder / "float.tif", samples(16, 16) / np.float32(7)),
    lambda folder: tifffile.imwrite(folder / "large.tif", np.float32(1e30) * samples(16, 16)),
    lambda folder: Image.new("L", (16, 16), 7).save(folder / "flat.png"),
    lambda folder: Image.fromarray(samples(16, 16) > 90).save(folder / "bits.png"),
    lambda folder: Image.fromarray(samples(16, 16, 2), "LA").save(folder / "alpha.png"),
    lambda folder: Image.fromarray(samples(16, 16)).save(folder / "two\nlines.png"),
    lambda folder: Image.fromarray(samples(16, 16)).save(folder / "not-utf8-\udcff.png"),
)
assert len(REFUSED) == 30
