"""Files read and written in parts: every TIFF that a whole one takes, with its channels, its metadata, its refusals."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.errors import FileError
from dl_techniques.images.files import image_shape, open_windows, read_image
from dl_techniques.images.raster import BandWriter
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import PredictionOptions
from models import predict_files, saved
from test_files import samples
from test_predict import save_segmenter

QUIET = Console(quiet=True)
SIZE = (300, 280)
WIDE = samples(*SIZE, 3, dtype="uint16")
PART = WIDE[:104, :208]  # in 3 MB two rows of six tiles


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    return {n: save_segmenter(tmp_path_factory.mktemp("seg"), channels=n, version="v1") for n in (1, 3)}


def streamed(model, source, output, memory="3MB", **kwargs):
    """Return what becomes of a file that does not fit the memory."""
    options = PredictionOptions(output=output, max_memory=memory, engine="keras", **kwargs)
    assert not Predictor(model, max_memory=memory).holds(image_shape(source))
    (result,) = predict_files(model, [str(source)], options, QUIET)
    return result


# === Strips ===


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [SIZE[0], 130, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_strips_without_compression_are_read_however_large(rows, channels, order, tmp_path):
    pixels = WIDE if channels == 3 else WIDE[..., :1]
    kind = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), photometric=kind, rowsperstrip=rows, byteorder=order)
    cache = 40_000
    assert rows * SIZE[1] * channels * 2 > cache or rows == 7
    with open_windows(tmp_path / "a.tif", cache) as raster:
        assert raster.block_bytes <= cache and raster.dtype.isnative
        for top, bottom, left, right in ((0, 300, 0, 280), (60, 140, 40, 97), (299, 300, 0, 1)):
            found = raster[slice(top, bottom), slice(left, right)]
            assert np.array_equal(found, pixels[top:bottom, left:right])
            assert sum(block.nbytes for block in raster._decoded.values()) <= cache


def test_strips_that_must_be_decoded_whole_are_refused_with_what_they_take(segmenters, tmp_path):
    pixels = np.zeros((3000, 2000), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=3000, compression="zlib")
    result = streamed(segmenters[1], tmp_path / "a.tif", tmp_path / "out", "20MB")
    assert "a.tif: is compressed in strips too large for the memory: each takes 12 MB" in result.error
    assert "there is room for 5 MB. Save it as grey or RGB TIFF, in tiles" in result.error
    assert list((tmp_path / "out").iterdir()) == []


def test_torn_and_absent_rows(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", WIDE, photometric="rgb", rowsperstrip=SIZE[0])
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "torn.tif").write_bytes(content[:-1000])
    with open_windows(tmp_path / "torn.tif", 40_000) as raster:
        with pytest.raises(FileError, match="torn.tif: cannot be read: it ends before row 300 of 300"):
            raster[slice(290, 300), slice(0, 280)]


def test_one_large_strip_stays_within_the_memory(segmenters, tmp_path):
    """The peak of a process that reads 120 MB of one strip is not 120 MB above that of one that reads little."""
    for name, rows in (("small", 40), ("large", 15000)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((rows, 4000), "uint16"), rowsperstrip=rows)
    peaks = []
    for name in ("small", "large"):
        code = "import resource; from pathlib import Path; from dl_techniques.images.files import open_windows\n"
        code += "from dl_techniques.inference.streaming import View, measure_raster\n"
        code += f"with open_windows(Path({str(tmp_path / name)!r} + '.tif'), 8_000_000) as raster:\n"
        code += "    measure_raster(View(raster, (0,)))\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(1024 * int(done.stdout))
    assert peaks[1] - peaks[0] < 60e6


# === Channels ===


def adapted(channels):
    """Return pixels that a segmenter of so many channels takes only adapted, their photometric, and what is said."""
    alpha = np.full((*PART.shape[:2], 1), 9, "uint16")
    grey = PART[..., :1]
    if channels == 3:
        yield "grey", grey, "minisblack", ["grey taken as RGB"]
        yield "rgba", np.concatenate([PART, alpha], axis=2), "rgb", ["alpha left out"]
    else:
        yield "equal", np.repeat(grey, 3, axis=2), "rgb", ["RGB of equal colours taken as grey"]
        yield "grey and alpha", np.concatenate([grey, alpha], axis=2), "minisblack", ["alpha left out"]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_adapted_in_parts_as_in_one(channels, segmenters, tmp_path):
    for name, pixels, kind, notes in adapted(channels):
        path = tmp_path / f"{name}.tif"
        extra = {"extrasamples": ["unassalpha"]} if "alpha left out" in notes else {}
        planar = {"planarconfig": "contig"} if pixels.shape[2] > 1 else {}
        tifffile.imwrite(path, pixels.squeeze(), photometric=kind, rowsperstrip=300, **planar, **extra)
        result = streamed(segmenters[channels], path, tmp_path / f"{channels}-{name}-parts.tif")
        assert result.error == "" and result.report.notes == ("read and written in parts", *notes)
        options = PredictionOptions(output=tmp_path / f"{channels}-{name}.tif", engine="keras")
        (whole,) = predict_files(segmenters[channels], [str(path)], options, QUIET)
        assert sorted(whole.report.notes) == sorted(notes)
        masks = [tifffile.imread(found.output) for found in (result, whole)]
        assert np.mean(masks[0] != masks[1]) <= 1e-4 and len(np.unique(masks[0])) > 1


def test_colours_that_would_be_lost_and_numbers_that_are_none_are_refused(segmenters, tmp_path):
    tifffile.imwrite(tmp_path / "colour.tif", PART, photometric="rgb")
    bad = PART[..., 0].astype("float32")
    bad[5, 7] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", bad)
    tifffile.imwrite(tmp_path / "huge.tif", np.where(np.isnan(bad), 1e39, bad.astype("float64")))
    for name, reason in (
        ("colour.tif", "has 3 channels; model.keras takes 1"),
        ("nan.tif", "holds 1 samples that are NaN or infinite"),
        ("huge.tif", "must have magnitudes that float32 holds"),
    ):
        result = streamed(segmenters[1], tmp_path / name, tmp_path / "out")
        assert f"{name}: " in result.error and reason in result.error
    assert list((tmp_path / "out").iterdir()) == []


# === Restored images ===


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_colours_are_restored_one_by_one_and_alpha_stays(version, tmp_path):
    (tmp_path / "model").mkdir()
    design = {"input_shape": (None, None, 1), "output_channels": 1, "use_bias": False, "block_kernel_size": 3}
    model = saved(tmp_path / "model", {"task": "denoise"}, convnext_version=version, stem_kernel_size=3, **design)
    colours = PART[:96, :104]  # in four tiles
    alpha = samples(96, 104, 1, dtype="uint16")
    pixels = np.concatenate([colours, alpha], axis=2)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], rowsperstrip=300,
        resolution=(300, 200), resolutionunit=2, description="a cell", software="scanner", iccprofile=b"profile" * 30,
        extratags=[(0x0112, 3, 1, 6, True)], metadata=None,
    )  # fmt: skip
    result = streamed(model, tmp_path / "a.tif", tmp_path / "b.tif")
    assert result.error == ""
    expected = Predictor(model)(colours).pixels
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        page = file.pages[0]
        found = page.asarray()
        assert page.photometric.name == "RGB" and page.extrasamples[0].name == "UNASSALPHA" and page.is_tiled
    assert found.dtype == np.uint16 and np.array_equal(found[..., 3:], alpha)
    assert np.abs(found[..., :3].astype(int) - expected).max() <= 2
    again, source = read_image(tmp_path / "b.tif"), read_image(tmp_path / "a.tif")
    assert again.extras == source.extras and again.extras["text"] == {"Description": "a cell", "Software": "scanner"}
    assert again.pixels.shape == (104, 96, 3) == source.pixels.shape  # turned upright by the tag that was kept
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "b.tif", "model"}


def test_bands_are_written_with_what_the_file_shall_say(tmp_path):
    writer = BandWriter(tmp_path / "a.tif", (8, 9, 2), "uint8", 1, {"dpi": (72.0, 72.0), "text": {"Author": "Ann"}})
    writer.write(samples(8, 9, 2))
    writer.close()
    picture = read_image(tmp_path / "a.tif")
    assert picture.extras == {"dpi": (72.0, 72.0), "text": {"Author": "Ann"}}
    assert np.array_equal(picture.alpha, samples(8, 9, 2)[..., 1])


@pytest.mark.parametrize("rows", [256, 300])
def test_nothing_is_left_of_a_file_that_is_not_closed(rows, tmp_path):
    for given in (rows - 1, rows):
        writer = BandWriter(tmp_path / "a.tif", (rows, 9, 1), "uint8")
        writer.write(samples(given, 9, 1))
        writer.abandon()
        assert list(tmp_path.iterdir()) == []
    writer = BandWriter(tmp_path / "a.tif", (rows, 9, 1), "uint8")
    writer.write(samples(rows, 9, 1))
    assert not (tmp_path / "a.tif").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, samples(rows, 9, 1))


def test_command_says_what_was_adapted(segmenters, tmp_path, capfd):
    tifffile.imwrite(tmp_path / "a.tif", PART[..., 0])
    arguments = ["predict", str(segmenters[3]), str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.tif")]
    assert main([*arguments, "--max-memory", "3MB", "--engine", "keras"]) == 0
    assert "read and written in parts, grey taken as RGB" in capfd.readouterr().out
