"""Image files of every kind: read faithfully and upright, written whole, refused by name."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from dl_techniques.errors import FileError
from dl_techniques.images.files import Picture, find_images, read_image, unit_range, write_image


def samples(*shape: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.normal(scale=100, size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "suffix, dtype",
    [(".png", "uint8"), (".png", "uint16"), (".webp", "uint8"), (".bmp", "uint8")]
    + [(".tif", dtype) for dtype in ("uint8", "uint16", "float32", "float64")],
)
def test_written_images_are_read_back_to_the_last_bit(suffix, dtype, channels, alpha, tmp_path):
    picture = Picture(samples(5, 7, channels, dtype=dtype), samples(5, 7, dtype=dtype) if alpha else None)
    path = tmp_path / f"image{suffix}"
    if suffix == ".bmp" and alpha:
        with pytest.raises(FileError, match="hold no alpha"):
            write_image(path, picture)
        return
    write_image(path, picture)
    again = read_image(path)
    expected = np.repeat(picture.pixels, 3, axis=2) if suffix == ".webp" and channels == 1 else picture.pixels
    assert again.pixels.dtype == dtype and np.array_equal(again.pixels, expected)
    assert (again.alpha is None) is (picture.alpha is None)
    assert picture.alpha is None or np.array_equal(again.alpha, picture.alpha)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_sixteen_bits_of_colour_survive(tmp_path):
    import imagecodecs

    pixels = samples(6, 5, 3, dtype="uint16")
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(pixels))
    assert np.array_equal(read_image(tmp_path / "deep.png").pixels, pixels)


def test_palette_is_expanded_and_its_transparency_kept(tmp_path):
    image = Image.fromarray(samples(8, 8) // 64).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    plain, clear = (read_image(tmp_path / name) for name in ("plain.png", "clear.png"))
    assert np.array_equal(plain.pixels, np.asarray(image.convert("RGB"))) and plain.alpha is None
    assert plain.notes == ("palette expanded",)
    assert clear.alpha is not None and set(np.unique(clear.alpha)) == {0, 255}


def test_cmyk_becomes_rgb_and_says_so(tmp_path):
    Image.fromarray(samples(8, 8, 3)).convert("CMYK").save(tmp_path / "print.jpg")
    picture = read_image(tmp_path / "print.jpg")
    assert picture.pixels.shape == (8, 8, 3) and picture.notes == ("CMYK converted to RGB",)


def test_exif_orientation_is_applied_once(tmp_path):
    pixels = samples(4, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    picture = read_image(tmp_path / "turned.png")
    assert np.array_equal(picture.pixels, np.rot90(pixels, -1))
    write_image(tmp_path / "again.png", picture)
    assert np.array_equal(read_image(tmp_path / "again.png").pixels, picture.pixels)


def test_colour_profile_is_kept(tmp_path):
    Image.fromarray(samples(4, 4, 3)).save(tmp_path / "a.png", icc_profile=b"profile")
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.png"))
    with Image.open(tmp_path / "b.png") as file:
        assert file.info["icc_profile"] == b"profile"


def test_white_is_zero_and_one_bit_tiffs(tmp_path):
    pixels = samples(4, 4)
    tifffile.imwrite(tmp_path / "white.tif", pixels, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "white.tif").pixels[..., 0], 255 - pixels)
    Image.fromarray(pixels > 100).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png").pixels[..., 0], 255 * (pixels > 100))


def damaged(kind: str, folder):
    path = folder / "photo.png"
    Image.fromarray(samples(64, 64)).save(path)
    content = path.read_bytes()
    if kind == "truncated jpeg":
        Image.fromarray(samples(64, 64)).save(folder / "photo.jpg")
        content = (folder / "photo.jpg").read_bytes()
    if kind == "animated":
        frames = [Image.fromarray(samples(8, 8) // (n + 1)) for n in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif kind == "stack":
        path = folder / "photo.tif"
        tifffile.imwrite(path, samples(3, 8, 8), photometric="minisblack")
    elif kind == "truncated tiff":
        path = folder / "photo.tif"
        tifffile.imwrite(path, samples(64, 64))
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "truncated 16-bit colours":  # Pillow gives 8 of the bits, another decoder reads them
        path.write_bytes(imagecodecs.png_encode(samples(64, 64, 3, dtype="uint16"))[:-2000])
    elif kind == "complex":
        path = folder / "photo.tif"
        tifffile.imwrite(path, samples(8, 8, dtype="float32").astype("complex64"))
    elif kind == "folder":
        path = folder / "photo.folder.png"
        path.mkdir()
    elif kind == "link":
        path = folder / "link.png"
        path.symlink_to(folder / "nowhere.png")
    else:
        half = content[: len(content) // 2]
        changed = {"empty": b"", "html": b"<html></html>", "svg": b"<svg/>", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
        path.write_bytes({**changed, "truncated": half, "truncated jpeg": half}[kind])
    return path


@pytest.mark.parametrize(
    "kind",
    ["empty", "html", "svg", "eps", "truncated", "truncated jpeg", "truncated tiff", "animated", "stack", "complex"]
    + ["truncated 16-bit colours", "folder", "link"],
)
def test_what_is_not_one_whole_image_is_refused_by_name(kind, tmp_path):
    path = damaged(kind, tmp_path)
    with pytest.raises(FileError, match="photo|link.png"):
        read_image(path)


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (12_000, 9_000)).save(path)  # 108 megapixels, where Pillow only warns
    assert read_image(path).pixels.shape == (9_000, 12_000, 1)
    with pytest.raises(FileError, match="large.png: has 12000x9000 pixels, more than the 100000000 allowed"):
        read_image(path, max_pixels=100_000_000)


def test_samples_that_a_format_cannot_hold_are_refused_and_leave_nothing(tmp_path):
    for name in ("image.png", "image.jpg"):
        with pytest.raises(FileError, match="cannot hold float32 samples. Choose .tif"):
            write_image(tmp_path / name, Picture(samples(4, 4, 1, dtype="float32")))
    assert list(tmp_path.iterdir()) == []


def test_folders_are_searched_and_missing_paths_named(tmp_path):
    for name in ("b.PNG", "a.tif", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([tmp_path])] == ["a.tif", "b.PNG"]
    with pytest.raises(FileError, match="nowhere: does not exist"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty: holds no image file"):
        find_images([tmp_path / "empty"])


def test_integers_become_shares_of_their_range():
    assert np.array_equal(unit_range(np.array([0, 65535], "uint16")), np.array([0, 1], "float32"))


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "int32", "uint32", "int64", "uint64"])
def test_rare_types_of_tiff_keep_every_value(dtype, tmp_path):
    kind = np.dtype(dtype)
    limits = (np.finfo if kind.kind == "f" else np.iinfo)(kind)
    largest = 2**53 - 1 if kind.itemsize == 8 else limits.max
    values = np.array([[0, 1, 100], [7, largest, 0 if kind.kind == "u" else -min(largest, -int(limits.min))]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    picture = read_image(tmp_path / "a.tif")
    wider = "float32" if kind.itemsize < 4 else "float64"
    assert picture.pixels.dtype == wider and np.array_equal(picture.pixels[..., 0].astype(dtype), values)
    assert picture.notes == (f"{dtype} read as {wider} without loss",)


def test_integers_that_no_float_holds_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((3, 3), 2**60, "int64"))
    with pytest.raises(FileError, match="a.tif: cannot be read: int64 samples"):
        read_image(tmp_path / "a.tif")
