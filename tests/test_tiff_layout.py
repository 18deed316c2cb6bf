"""Which pages of a TIFF are images, channels, levels or previews; what it declares is there, and comes out again."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from rich.console import Console

from bad_images import samples
from dl_techniques.errors import FileError
from dl_techniques.images.files import open_image, read_image, write_image
from dl_techniques.images.source import Picture
from dl_techniques.inference import files
from dl_techniques.inference.files import predict_file
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import PredictionOptions
from dl_techniques.tasks.segmentation.readers import MaskReader
from models import predict_files, smoothing_engine
from test_predict import save_segmenter

QUIET = Console(quiet=True)
STACK = samples(6, 24, 20)
RGB = samples(24, 20, 3)
GEO = [
    (33550, 12, 3, (10.0, 10.0, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
]


def pages_of(path: Path, **options) -> list[np.ndarray]:
    with open_image(path) as source:
        return [source.read(page, **options).pixels for page in range(source.count)]


def notes_of(path: Path) -> str:
    with open_image(path) as source:
        return "; ".join(source.read(0).notes)


def smoothed(source: Path, folder: Path) -> tuple[Path, str]:
    """Return what a denoiser that takes the mean of nine pixels makes of a file, and what was said of it."""
    output = folder / "out.tif"
    options = PredictionOptions(output=output)
    report = predict_file(Predictor(smoothing_engine(), task="denoise"), source, output, options, lambda *_: None)
    return output, "; ".join(report.notes)


def mean_of_nine(pixels: np.ndarray) -> np.ndarray:
    padded = np.pad(pixels.astype("float64"), 1, mode="edge")
    shifts = [padded[i : i + pixels.shape[0], j : j + pixels.shape[1]] for i in range(3) for j in range(3)]
    return np.mean(shifts, axis=0)


# === Planes: all that are declared, or a refusal ===


@pytest.mark.parametrize("imagej", [True, False], ids=["ImageJ", "tifffile"])
def test_a_stack_behind_one_page_has_all_planes(imagej, tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, imagej=imagej, truncate=True, photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    assert np.array_equal(np.stack(pages_of(path))[..., 0], STACK)
    output, _ = smoothed(path, tmp_path)
    found = tifffile.imread(output)
    assert found.shape == STACK.shape
    for plane, expected in zip(found, STACK, strict=True):
        assert np.abs(plane - mean_of_nine(expected)).max() <= 1


@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "head"])
def test_an_incomplete_stack_is_refused_and_the_batch_goes_on(kind, damage, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "stack.tif"
    tifffile.imwrite(path, samples(6, 96, 80), photometric="minisblack", **{kind: True})
    content = path.read_bytes()
    kept = content[: 8 if damage == "head" else len(content) * 6 // 10]
    path.write_bytes(kept + bytes(len(content) - len(kept)) if damage == "zeros" else kept)
    write_image(tmp_path / "in" / "z.png", Picture(RGB[..., :1]))
    predictor = Predictor(smoothing_engine(), task="denoise")
    options = PredictionOptions(output=tmp_path / "out")
    results = files.predict_files(lambda _: predictor, [str(tmp_path / "in")], options, QUIET)
    assert ["stack.tif" in result.error for result in results] == [True, False]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.png"]


def test_planes_that_are_declared_and_not_held_are_counted(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True)
    content = path.read_bytes()
    assert content.count(b"images=6") == 1
    path.write_bytes(content.replace(b"images=6", b"images=8").replace(b"slices=6", b"slices=8"))
    with pytest.raises(FileError, match="declares 8 planes .images= of ImageJ. and holds 6 pages"):
        pages_of(path)


# === Channels, levels, previews ===


def test_channels_of_a_composite_are_one_image(tmp_path):
    path, channels = tmp_path / "composite.tif", np.moveaxis(RGB, -1, 0)
    tifffile.imwrite(path, channels, imagej=True, metadata={"axes": "CYX", "mode": "composite"})
    (found,) = pages_of(path, channels=3)
    assert np.array_equal(found, RGB)
    write_image(tmp_path / "rgb.png", Picture(RGB))
    model = save_segmenter(tmp_path / "model", channels=3)
    results = predict_files(
        model, [str(path), str(tmp_path / "rgb.png")], PredictionOptions(output=tmp_path / "out", engine="keras"), QUIET
    )
    assert not any(result.error for result in results)
    (found,) = pages_of(tmp_path / "out" / "composite.png", raw_values=True)
    (expected,) = pages_of(tmp_path / "out" / "rgb.png", raw_values=True)
    assert np.array_equal(found, expected)


def test_two_channels_are_not_slivers(tmp_path):
    path = tmp_path / "two.tif"
    tifffile.imwrite(path, RGB[..., :2])
    (found,) = pages_of(path, channels="declared")
    assert np.array_equal(found, RGB[..., :2])


def test_levels_of_a_pyramid_are_left_out_and_named(tmp_path):
    path, full = tmp_path / "slide.tif", samples(96, 80, 3)
    with tifffile.TiffWriter(path) as file:  # without a flag, in the order of Aperio
        for step in (1, 8, 4):
            file.write(full[::step, ::step], photometric="rgb", metadata=None)
    (found,) = pages_of(path)
    assert np.array_equal(found, full) and "smaller copies and previews left out: 10x12, 20x24" in notes_of(path)


def test_pages_of_different_sizes_that_are_no_levels_are_images_and_named(tmp_path):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as file:
        for size in ((24, 20), (31, 17)):
            file.write(samples(*size), metadata=None)
    assert [page.shape[:2] for page in pages_of(path)] == [(24, 20), (31, 17)]
    assert "pages of different sizes: 20x24, 17x31" in notes_of(path)


def test_the_picture_of_a_subifd_is_taken_and_raw_data_are_refused(tmp_path):
    full, raw = tmp_path / "full.tif", tmp_path / "photo.tif"
    big = samples(96, 80, 3)
    with tifffile.TiffWriter(full) as file:
        file.write(big[::4, ::4], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(big, photometric="rgb", metadata=None)
    (found,) = pages_of(full)
    assert np.array_equal(found, big)
    with tifffile.TiffWriter(raw) as file:
        file.write(big[::4, ::4], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        pattern = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, b"\0\1\1\2", True)]
        file.write(big[..., 0].astype("uint16"), photometric="cfa", metadata=None, extratags=pattern)
    with pytest.raises(FileError, match="raw sensor data"):
        pages_of(raw)


# === Bits ===


def inverted_tiff(path: Path, values: np.ndarray, bits: int) -> None:
    """Write samples of any number of bits, 0 as white, one strip."""
    digits = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    data = np.packbits(digits.reshape(len(values), -1), axis=1).tobytes()
    height, width = values.shape
    tags: Sequence[tuple[int, int, int | None]] = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 0), (273, 4, None), (277, 3, 1),
        (278, 4, height), (279, 4, len(data)),
    ]  # fmt: skip
    begin = 14 + 12 * len(tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, value in tags:
        number = begin if value is None else value
        content += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<Hxx", number)
    path.write_bytes(content + struct.pack("<I", 0) + data)


@pytest.mark.parametrize("bits", [4, 12])
def test_white_is_the_largest_value_of_the_bits(bits, tmp_path):
    values = np.random.default_rng(0).integers(0, 2**bits, (24, 20))
    inverted_tiff(tmp_path / "a.tif", 2**bits - 1 - values, bits)
    (found,) = pages_of(tmp_path / "a.tif")
    assert np.array_equal(found[..., 0], values)


def test_one_bit_and_booleans_are_black_and_white(tmp_path):
    inside = STACK[0] > 127
    inverted_tiff(tmp_path / "one.tif", 1 - inside.astype(int), 1)
    tifffile.imwrite(tmp_path / "bool.tif", ~inside)  # which it writes with 0 as white
    for name in ("one.tif", "bool.tif"):
        (found,) = pages_of(tmp_path / name)
        assert np.array_equal(found[..., 0] > 0, inside) and len(np.unique(found)) == 2, name
        (mask,) = pages_of(tmp_path / name, raw_values=True)
        assert np.array_equal(mask[..., 0], inside), name


# === Validity and tags ===


def test_nodata_and_places_go_from_input_to_output(tmp_path):
    terrain = (500 + samples(40, 30) / 10).astype("float32")
    terrain[10:20, 5:15] = -9999
    nodata = (42113, 2, 6, b"-9999\0", True)
    tifffile.imwrite(tmp_path / "dem.tif", terrain, metadata=None, extratags=[nodata, *GEO])
    output, said = smoothed(tmp_path / "dem.tif", tmp_path)
    with tifffile.TiffFile(output) as file:
        page = file.pages.first
        found = page.asarray()
        assert page.tags[42113].value == "-9999" and page.tags[33550].value == (10.0, 10.0, 0.0)
        assert page.tags[33922].value[3:5] == (4e5, 5e6) and page.tags[34735].value[:4] == (1, 1, 0, 1)
    hole = terrain == -9999
    assert (found[hole] == -9999).all() and "100 samples without data left as they are" in said
    assert np.abs(found[~hole] - terrain[~hole]).max() < 30  # nothing of the hole is in its neighbours
    options = PredictionOptions(output=output, inspect=True)
    predictor = Predictor(smoothing_engine(), task="denoise")
    report = predict_file(predictor, tmp_path / "dem.tif", tmp_path / "b.tif", options, lambda *_: None)
    assert 4 < float(str(report.remarks.facts["noise"].split()[-1])) < 12  # of samples from 500 to 525


def test_holes_of_an_image_are_ignored_in_its_mask(tmp_path):
    image = samples(40, 30).astype("float32")
    image[10:20, 5:15] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True)
    predictor = Predictor(save_segmenter(tmp_path / "model"), engine="keras")
    options = PredictionOptions(output=tmp_path / "mask.tif")
    predict_file(predictor, tmp_path / "a.tif", tmp_path / "mask.tif", options, lambda *_: None)
    mask = tifffile.imread(tmp_path / "mask.tif")
    assert (mask[np.isnan(image)] == 255).all() and (mask[~np.isnan(image)] < 255).all()


def test_axes_units_and_sizes_go_from_input_to_output(tmp_path):
    told = {"axes": "ZYX", "unit": "um", "spacing": 0.5}
    tifffile.imwrite(tmp_path / "j.tif", STACK, imagej=True, resolution=(4.0, 4.0), metadata=told)
    output, _ = smoothed(tmp_path / "j.tif", tmp_path)
    with tifffile.TiffFile(output) as file:
        assert file.series[0].axes == "ZYX" and file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata["spacing"] == 0.5 and file.pages.first.tags[282].value == (4, 1)
    physical = {"axes": "TCYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(tmp_path / "o.ome.tif", STACK.reshape(3, 2, 24, 20), ome=True, metadata=physical)
    output, said = smoothed(tmp_path / "o.ome.tif", tmp_path)
    with tifffile.TiffFile(output) as file:
        assert file.series[0].axes == "TCYX" and file.series[0].shape == (3, 2, 24, 20)
        assert 'PhysicalSizeX="0.25"' in file.ome_metadata and "channels taken one by one" in said
        for plane, expected in zip(file.series[0].asarray().reshape(-1, 24, 20), STACK, strict=True):
            assert np.abs(plane - mean_of_nine(expected)).max() <= 1


# === Colours ===


def test_a_table_of_colours_shows_grey_values_and_indices_are_classes(tmp_path):
    ramp = np.arange(256) * 257
    green = np.stack([np.zeros(256), ramp, np.zeros(256)]).astype("uint16")
    tifffile.imwrite(tmp_path / "green.tif", STACK[0], imagej=True, colormap=green)
    (found,) = pages_of(tmp_path / "green.tif")
    assert found.dtype == "uint8" and np.array_equal(found[..., 0], STACK[0])
    assert "its colour table only shows the samples" in notes_of(tmp_path / "green.tif")
    output, _ = smoothed(tmp_path / "green.tif", tmp_path)
    with tifffile.TiffFile(output) as file:
        assert np.array_equal(file.pages.first.colormap, green)

    labels, colours = STACK[0] // 86, np.zeros((3, 256), "uint16")
    colours[:, :3] = np.array([[0, 0, 0], [65535, 0, 0], [0, 65535, 0]]).T
    tifffile.imwrite(tmp_path / "mask.tif", labels, photometric="palette", colormap=colours)
    with open_image(tmp_path / "mask.tif") as source:
        mask, _ = MaskReader().read(source, 0, None, None)
    assert np.array_equal(mask[..., 0], labels)


def test_jpeg_parts_with_common_tables_are_read_whole_and_in_parts(tmp_path):
    smooth = np.kron(samples(12, 10, 3), np.ones((32, 32, 1), "uint8"))
    path = tmp_path / "slide.tif"
    Image.fromarray(smooth).convert("YCbCr").save(path, compression="jpeg", quality=90)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        assert page.photometric.name == "YCBCR" and page.jpegtables and len(page.dataoffsets) > 1
    (whole,) = pages_of(path)
    assert whole.shape == smooth.shape and np.abs(whole.astype(int) - smooth).mean() < 6
    with open_image(path) as source:
        part = source.windows(2**24)[70:140, 60:190]
    assert np.abs(part.astype(int) - whole[70:140, 60:190]).max() <= 1
    assert "YCbCr converted to RGB" in notes_of(path)


# === PNG ===


def test_colour_chunks_of_png_go_from_input_to_output(tmp_path):
    info = PngImagePlugin.PngInfo()
    gamma = struct.pack(">I", 45455)
    info.add(b"gAMA", gamma)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    picture = read_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", picture)
    assert b"gAMA" + gamma in (tmp_path / "b.png").read_bytes()
    output, said = smoothed(tmp_path / "a.png", tmp_path)
    assert output.suffix == ".tif" and "gAMA of PNG left out" in said
