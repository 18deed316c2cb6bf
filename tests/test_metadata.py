"""What a file says besides its samples reaches the result: profile, resolution, EXIF, words; CMYK is converted."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from dl_techniques.cli import main
from dl_techniques.images.files import Picture, read_image, write_image
from test_files import samples

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WORDS = {"Description": "a cell", "Author": "Zoë", "Software": "microscope 1.2"}
MAKER, WRITTEN, TURNED = 0x010F, 0x0132, 0x0112


def exif(orientation: int | None = None) -> Image.Exif:
    told = Image.Exif()
    told[MAKER], told[WRITTEN] = "Maker", "2020:01:02 03:04:05"
    told.get_ifd(0x8769)[0x829A] = 0.5  # exposure time
    if orientation:
        told[TURNED] = orientation
    return told


def extras(**more) -> dict:
    return {"icc_profile": SRGB, "dpi": (300.0, 200.0), "exif": exif().tobytes(), "text": WORDS, **more}


def told(path) -> tuple[str, float]:
    with Image.open(path) as file:
        found = file.getexif()
        return found[MAKER], float(found.get_ifd(0x8769)[0x829A])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name, dtype", [("a.png", "uint8"), ("a.png", "uint16"), ("a.jpg", "uint8"),
                                         ("a.webp", "uint8"), ("a.tif", "uint16"), ("a.bmp", "uint8")])  # fmt: skip
def test_written_files_have_the_metadata_of_the_source(name, dtype, channels, tmp_path):
    pixels = samples(8, 9, channels, dtype=dtype)
    write_image(tmp_path / name, Picture(pixels, None, (), extras(text={**WORDS, "Comment": "seen"})))
    again = read_image(tmp_path / name)
    if name != "a.jpg":
        assert np.array_equal(again.pixels[..., :channels], pixels)
    if name != "a.bmp":
        assert again.extras["icc_profile"] == SRGB
    if name != "a.webp":
        assert np.allclose(again.extras["dpi"], (300, 200), atol=0.5)
    if name in ("a.png", "a.jpg", "a.webp"):
        assert told(tmp_path / name) == ("Maker", 0.5)
    text = again.extras.get("text", {})
    if name == "a.png":
        assert text == {**WORDS, "Comment": "seen"}
    elif name == "a.jpg":
        assert text == {"Comment": "seen"}
    elif name == "a.tif":
        assert text == {**WORDS, "Make": "Maker", "Creation Time": "2020:01:02 03:04:05"}


def make_sources(folder) -> None:
    """Write a deep and a plain PNG, a photo, a WebP and a TIFF that tell all that their formats can."""
    pngs = {"pnginfo": PngInfo(), "icc_profile": SRGB, "dpi": (300, 200), "exif": exif()}
    for key, words in WORDS.items():
        pngs["pnginfo"].add_itxt(key, words)
    Image.fromarray(samples(20, 30)).save(folder / "plain.png", **pngs)
    Image.fromarray(samples(20, 30, dtype="uint16")).save(folder / "deep.png", **pngs)
    plain = Image.fromarray(samples(20, 30))
    plain.save(folder / "photo.jpg", icc_profile=SRGB, dpi=(300, 200), exif=exif(), comment=b"seen")
    plain.convert("RGB").save(folder / "web.webp", icc_profile=SRGB, exif=exif(), lossless=True)
    tifffile.imwrite(
        folder / "scan.tif", samples(20, 30, dtype="uint16"), iccprofile=SRGB, resolution=(5, 6), resolutionunit=1,
        description="ImageJ=1.54\nunit=micron", software="scanner", metadata=None,
        extratags=[(315, 2, 4, "Ann", True)],
    )  # fmt: skip


def test_restored_files_keep_the_metadata(preset, tmp_path):
    (tmp_path / "in").mkdir()
    make_sources(tmp_path / "in")
    arguments = ["predict", str(preset), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--engine", "keras"]
    assert main(arguments) == 0
    for name in ("plain.png", "deep.png", "photo.png", "web.webp"):
        path = tmp_path / "out" / name
        found = read_image(path).extras
        assert found["icc_profile"] == SRGB and told(path) == ("Maker", 0.5)
        assert name == "web.webp" or np.allclose(found["dpi"], (300, 200), atol=0.5)
        assert found.get("text", {}) == {"photo.png": {"Comment": "seen"}, "web.webp": {}}.get(name, WORDS)
    again = read_image(tmp_path / "out" / "scan.tif")
    assert again.pixels.dtype == np.uint16 and again.extras["icc_profile"] == SRGB
    assert again.extras["per_unit"] == (5.0, 6.0)
    words = {"Description": "ImageJ=1.54\nunit=micron", "Software": "scanner", "Author": "Ann"}
    assert again.extras["text"] == words


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_files_are_turned_upright_alike(orientation, tmp_path):
    deep = samples(4, 9, 3, dtype="uint16")
    Image.fromarray(np.uint8(deep // 256)).save(tmp_path / "a.png", exif=exif(orientation))
    expected = read_image(tmp_path / "a.png").pixels
    tag = [(TURNED, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extratags=tag)
    write_image(tmp_path / "b.png", Picture(deep, None, (), {"exif": exif(orientation).tobytes()}))
    for name in ("a.tif", "b.png"):
        picture = read_image(tmp_path / name)
        assert np.array_equal(picture.pixels // 256, expected) and bool(picture.notes) == (orientation > 1)


def test_very_long_exif_does_not_stop_a_jpeg(tmp_path):
    told = exif()
    told[0x010E] = "x" * 70_000
    write_image(tmp_path / "a.jpg", Picture(samples(8, 8, 1), None, (), {"exif": told.tobytes()}))
    assert "exif" not in read_image(tmp_path / "a.jpg").extras


# === CMYK ===


def ink_profile() -> bytes:
    """Return an ICC profile of four inks whose first is red, as no ink is, and whose last is black."""
    white, red, black = (255, 128, 128), (136, 208, 195), (0, 128, 128)  # L, a, b in eighths of a word
    corners = b"".join(bytes(black if n & 1 else red if n & 8 else white) for n in range(16))
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + 4 * straight + corners + 3 * straight
    words = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(78)
    point = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    parts, place, tags = [], 128 + 4 + 3 * 12, []
    for name, content in ((b"desc", words), (b"wtpt", point), (b"A2B0", table)):
        content += bytes(-len(content) % 4)
        tags.append(name + struct.pack(">2I", place, len(content)))
        parts.append(content)
        place += len(content)
    head = struct.pack(">I", place) + b"lcms" + bytes((2, 16, 0, 0)) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + b"".join(tags) + b"".join(parts)


INKS = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 255, 51]]], "uint8")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_inks_without_a_profile_become_rgb(dtype, tmp_path):
    inks = INKS.astype(dtype) * (257 if dtype == "uint16" else 1)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated", planarconfig="contig")
    picture = read_image(tmp_path / "a.tif")
    largest = np.iinfo(dtype).max
    light = 1 - inks / largest
    assert picture.pixels.dtype == dtype and picture.notes == ("CMYK converted to RGB",)
    assert np.abs(picture.pixels / largest - light[..., :3] * light[..., 3:]).max() <= 0.5 / largest


def test_inks_with_a_profile_become_what_it_says(tmp_path):
    profile = ink_profile()
    tifffile.imwrite(tmp_path / "a.tif", INKS, photometric="separated", planarconfig="contig", iccprofile=profile)
    Image.frombytes("CMYK", (4, 1), INKS.tobytes()).resize((32, 8), 0).save(
        tmp_path / "a.jpg", icc_profile=profile, quality=100, subsampling=0
    )
    for name, middle in (("a.tif", slice(None)), ("a.jpg", slice(4, None, 8))):
        picture = read_image(tmp_path / name)
        white, red, black = picture.pixels[0, middle][:3].astype(int)
        assert picture.notes == ("CMYK converted to sRGB by its profile",) and "icc_profile" not in picture.extras
        assert white.min() >= 250 and black.max() <= 5 and red[0] >= 240 and red[1:].max() <= 30
    deep = 257 * INKS.astype("uint16")
    for number, (inks, given) in enumerate([(deep, profile), (INKS, b"no profile")]):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, inks, photometric="separated", planarconfig="contig", iccprofile=given)
        assert read_image(path).notes == ("CMYK converted to RGB, its profile left out",)


def test_transparency_beside_inks_is_kept(preset, tmp_path):
    inks = np.concatenate([np.repeat(INKS, 5, axis=0), np.full((5, 4, 1), 77, "uint8")], axis=2)
    tifffile.imwrite(
        tmp_path / "a.tif", inks, photometric="separated", planarconfig="contig", extrasamples=["unassalpha"]
    )
    picture = read_image(tmp_path / "a.tif")
    assert picture.pixels.shape == (5, 4, 3) and (picture.alpha == 77).all()
    assert main(["predict", str(preset), str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.tif"), "--engine=keras"]) == 0
    assert (read_image(tmp_path / "b.tif").alpha == 77).all()


def test_truncated_deep_colours_are_refused_by_name(tmp_path, preset, capfd):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(samples(64, 64, 3, dtype="uint16"))[:-2000])
    assert main(["predict", str(preset), str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--engine=keras"]) == 1
    assert "a.png: cannot be read" in capfd.readouterr().out
