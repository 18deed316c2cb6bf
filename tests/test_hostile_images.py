"""One bad file never ends a batch, nor takes the memory: refused by name, or read without what is broken in it."""

import contextlib
import io
import os
import socket
import struct
import sys
import weakref
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from bad_images import samples, tiff
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.images.codestreams import declared_size, png_is_complete, sample_bits
from dl_techniques.images.files import find_images, open_image, read_image, write_image, write_images
from dl_techniques.images.pillow import Source
from dl_techniques.images.source import Picture
from dl_techniques.inference.files import predict_files
from dl_techniques.inference.settings import PredictionOptions
from dl_techniques.tasks.base import Prediction
from dl_techniques.tasks.restoration.task import RestorationTask
from dl_techniques.tasks.segmentation.classes import Classes
from dl_techniques.tasks.segmentation.task import SegmentationTask

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz  # noqa: E402
import fuzz_files  # noqa: E402

# === Any damage ===


@pytest.mark.parametrize("kind", fuzz_files.KINDS)
def test_damaged_files_are_read_or_refused_by_name(kind):
    outcomes = [fuzz.attempt("files", kind, seed) for seed in range(12)]
    assert not [outcome for outcome in outcomes if outcome.state in fuzz.DEFECTS]
    assert {outcome.state for outcome in outcomes} <= {"done", "refused"}
    assert all("damaged." in outcome.detail for outcome in outcomes if outcome.state == "refused")


def test_a_worker_survives_crashes_and_what_never_ends(tmp_path, monkeypatch):
    (tmp_path / "fuzz_toy.py").write_text(
        "import os, time\nKINDS = ('a',)\n"
        "def attempt(kind, seed, folder):\n"
        "    if seed == 1: os._exit(7)\n"
        "    if seed == 2: time.sleep(60)\n"
        "    if seed == 3: raise KeyError('x')\n"
        "    return 'done'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    limits = {"seconds": 0.5, "limit": 10**9, "space": 0}
    outcomes = fuzz.run("toy", [("a", seed) for seed in range(5)], 1, **limits)
    assert [outcome.state for outcome in outcomes] == ["done", "crash", "too slow", "foreign error", "done"]
    assert outcomes[1].detail == "exit status 7" and outcomes[3].detail.startswith("KeyError: 'x' (fuzz_toy.py:6)")
    assert fuzz.table(outcomes)[-1].startswith("| all | 5 | 2 | 0 | 1 | 1 | 1 | 0 | 0 |")


class OddError(Exception):
    """Of a class that no decoder is known to raise."""


ERRORS = (OddError("odd"), zlib.error("odd"), RecursionError("odd"), MemoryError(), AssertionError("odd"))


@pytest.mark.parametrize("error", ERRORS)
def test_any_error_of_a_decoder_or_writer_names_the_file(error, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", Picture(samples(8, 9, 1)))

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Source, "_decode", fail)
    with pytest.raises(
        FileError, match=r"a\.png: (cannot be read: odd\. Copy or export it again|needs more memory than there is)"
    ):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(FileError, match=r"b\.png: (cannot be written: odd\.|needs more memory than there is)"):
        write_image(tmp_path / "b.png", Picture(samples(8, 9, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


class Computer:
    """What a predictor is to files: doubles an image, fails on one of a height, counts the results that are alive."""

    channels, memory = 1, 10**9

    def __init__(self, task, fails_at: int = 0) -> None:
        self.task, self.fails_at, self.alive, self.most = task, fails_at, 0, 0
        self.engine = type("Engine", (), {"source": "model", "model": None, "tiling": None})

    def holds(self, shape):
        return True

    def plan(self, shape):
        return 64

    def __call__(self, pixels, on_tile=None, valid=None):
        if pixels.shape[0] == self.fails_at:
            raise ZeroDivisionError("division by zero")
        self.alive += 1
        self.most = max(self.most, self.alive)
        result = np.array(2 * pixels)
        weakref.finalize(result, self._gone)
        shares = np.stack([pixels[..., 0] < 50, pixels[..., 0] >= 50], axis=-1).astype("float32")
        made = shares.argmax(-1)[..., None].astype("uint8") if not self.task.restores else result
        if made is not result:
            weakref.finalize(made, self._gone)
        return Prediction(made, shares, np.ones((*pixels.shape[:2], 1), "float32"))

    def _gone(self):
        self.alive -= 1


def test_what_fails_for_one_file_does_not_end_the_batch(tmp_path):
    for name, height in (("a", 8), ("b", 5), ("c", 8)):
        write_image(tmp_path / f"{name}.png", Picture(samples(height, 9, 1) // 2))
    computer, out = Computer(RestorationTask(), fails_at=5), tmp_path / "out"
    options = PredictionOptions(output=out)
    results = predict_files(lambda path: computer, [str(tmp_path)], options, Console(quiet=True))
    assert [bool(result.error) for result in results] == [False, True, False]
    assert results[1].error == f"{tmp_path / 'b.png'}: cannot be processed: division by zero. Leave it out."
    assert np.array_equal(read_image(out / "c.png").pixels, 2 * read_image(tmp_path / "c.png").pixels)


# === Memory ===


TASKS = (RestorationTask(), SegmentationTask(Classes((0, 1), ("a", "b"))))


@pytest.mark.parametrize("task", TASKS, ids=["restore", "segment"])
def test_pages_are_computed_and_written_one_by_one(task, tmp_path):
    pages = np.arange(12 * 16 * 20, dtype="uint8").reshape(12, 16, 20)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    computer, output = Computer(task), tmp_path / "out.tif"
    extras = {} if task.restores else {"probabilities": True, "overlay": True}
    options = PredictionOptions(output=output, tta=2, uncertainty=True, **extras)
    (result,) = predict_files(lambda path: computer, [str(tmp_path / "stack.tif")], options, Console(quiet=True))
    assert not result.error and computer.most <= 3
    expected = 2 * pages if task.restores else (pages >= 50).astype("uint8")
    assert np.array_equal(tifffile.imread(output), expected)
    assert tifffile.imread(tmp_path / "out-uncertainty.tif").shape == (12, 16, 20)
    if not task.restores:
        assert np.array_equal(tifffile.imread(tmp_path / "out-probabilities.tif")[..., 1], pages >= 50)
        assert len(list(tmp_path.glob("out-overlay-*.png"))) == 12
    assert not list(tmp_path.glob(".*"))


def test_a_page_that_fails_leaves_nothing_of_the_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "stack.tif") as writer:
        for height in (8, 8, 5):
            writer.write(samples(height, 9), photometric="minisblack")
    computer = Computer(RestorationTask(), fails_at=5)
    options = PredictionOptions(output=tmp_path / "out", tta=2, uncertainty=True)
    (result,) = predict_files(lambda path: computer, [str(tmp_path / "stack.tif")], options, Console(quiet=True))
    assert "stack.tif: cannot be processed: division by zero" in result.error
    assert not list((tmp_path / "out").iterdir())


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def bomb(codec: str) -> bytes:
    """A TIFF of one tile of 64x64 whose codestream declares 32,000x32,000 pixels."""
    content = tiff(samples(64, 64), compression=codec, tile=(64, 64), photometric="minisblack")
    if codec == "jpeg":
        return patched(content, struct.pack(">HHB", 64, 64, 1), struct.pack(">HHB", 32_000, 32_000, 1))
    if codec == "jpeg2000":
        size = struct.pack(">IIII", 64, 64, 0, 0)
        head = content.index(b"\xff\x51") + 6
        assert content[head : head + 16] == size
        return content[:head] + struct.pack(">IIII", 32_000, 32_000, 0, 0) + content[head + 16 :]
    assert codec == "png"
    return patched(content, b"IHDR" + struct.pack(">II", 64, 64), b"IHDR" + struct.pack(">II", 32_000, 32_000))


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png"])
def test_codestreams_larger_than_their_tile_are_refused_before_they_are_decoded(codec, tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(bomb(codec))
    with pytest.raises(FileError, match="a part of 64x64 pixels holds an image of 32000x32000"):
        read_image(tmp_path / "a.tif")


def test_codestreams_smaller_than_their_tile_are_refused_and_edges_are_not(tmp_path):
    content = tiff(samples(64, 64), compression="png", tile=(64, 64), photometric="minisblack")
    length = content.index(b"IEND") + 8 - content.index(b"\x89PNG")
    small = imagecodecs.png_encode(np.zeros((32, 128), "uint8"))  # as many samples
    place = content.index(b"\x89PNG")
    (tmp_path / "a.tif").write_bytes(content[:place] + small.ljust(length, b"\0") + content[place + length :])
    with pytest.raises(FileError, match="a part of 64x64 pixels holds an image of 128x32"):
        read_image(tmp_path / "a.tif")
    odd = samples(50, 70, 3)
    for name, codec, parts in (("b.tif", "jpegxl", {"tile": (32, 48)}), ("c.tif", "webp", {"rowsperstrip": 16})):
        options = {"compression": codec, "compressionargs": {"lossless": True}, "photometric": "rgb", **parts}
        tifffile.imwrite(tmp_path / name, odd, **options)
    for name in ("b.tif", "c.tif"):
        assert np.array_equal(read_image(tmp_path / name).pixels, odd)


ENCODERS = {
    "jpeg": imagecodecs.jpeg8_encode,
    "jpeg2000": imagecodecs.jpeg2k_encode,
    "jpegxl": imagecodecs.jpegxl_encode,
    "jpegxr": imagecodecs.jpegxr_encode,
    "png": imagecodecs.png_encode,
    "webp": imagecodecs.webp_encode,
    "webp lossless": lambda array: imagecodecs.webp_encode(array, lossless=True),
    "lerc": imagecodecs.lerc_encode,
}


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("height, width", [(40, 40), (33, 257), (512, 24), (30, 40), (90, 160), (700, 3000)])
def test_sizes_are_known_without_decoding(codec, height, width):
    data = bytes(ENCODERS[codec](np.zeros((height, width, 3), "uint8")))
    found = declared_size(data)
    assert found is not None and found[:2] == (height, width) and found.samples in (0, 3)
    for end in range(40):  # a head that is cut off is refused, or not taken for one
        with contextlib.suppress(ValueError):
            assert declared_size(data[:end]) in (None, found)


def directory(entries: list[tuple[int, int, int, int]], link: int = 0) -> bytes:
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + tags + struct.pack("<I", link)


def header(width: int, height: int, samples_per_pixel: int = 1, parts: int = 1) -> list[tuple[int, int, int, int]]:
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, parts, 8), (277, 3, 1, samples_per_pixel), (278, 4, 1, height // parts or 1), (279, 4, parts, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("content, said", [
    (directory(header(400, 400, 60_000)), "400x400 pixels of 60000 samples, more than the"),
    (directory(header(1, 2_000_000, 1, 2_000_000)), "2000000 strips or tiles"),
    (directory(header(4, 4) + [(322, 3, 1, 60_000), (323, 3, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 8)]), "tiles of"),
])  # fmt: skip
def test_what_a_tiff_asks_for_is_counted_before_it_is_allocated(content, said, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + content)
    with pytest.raises(FileError, match=said):
        read_image(path)


def test_strips_without_rows_are_not_read_in_parts(tmp_path):
    rows, none = (struct.pack("<HHII", 278, 4, 1, count) for count in (3, 0))
    path = tmp_path / "a.tif"
    path.write_bytes(patched(tiff(samples(9, 8), rowsperstrip=3, metadata=None), rows, none))
    with open_image(path) as source, pytest.raises(FileError, match="strips or tiles without pixels"):
        source.windows(2**20)


def test_more_pages_than_can_be_meant_are_refused(tmp_path):
    width = [(256, 3, 1, 1)]
    one, count = directory(width), 100_002
    links = (8 + len(one) * number for number in range(1, count))
    (tmp_path / "a.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 8) + b"".join(directory(width, link) for link in links)
    )
    with pytest.raises(FileError, match="has more than 100000 pages"), open_image(tmp_path / "a.tif") as source:
        source.count  # noqa: B018


# === Broken metadata ===


def exif_of(tag: int, kind: int, value: bytes, count: int = 1, orientation: int = 0) -> bytes:
    entries = [struct.pack("<HHI", 0x0112, 3, 1) + struct.pack("<HH", orientation, 0)] if orientation else []
    entries.append(struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0"))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0)


BROKEN = {
    "letters as unit": exif_of(296, 2, b"2\0", 2),
    "negative resolution": exif_of(282, 9, struct.pack("<i", -72)),
    "no head": b"Exif\0\0XX*\0\x08\0\0\0",
}


@pytest.mark.parametrize("exif", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pixels_are_read_where_exif_is_broken(exif, suffix, tmp_path):
    Image.fromarray(samples(8, 9, 3)).save(tmp_path / f"good{suffix}")
    Image.fromarray(samples(8, 9, 3)).save(tmp_path / f"bad{suffix}", exif=exif)
    picture = read_image(tmp_path / f"bad{suffix}")
    assert np.array_equal(picture.pixels, read_image(tmp_path / f"good{suffix}").pixels)
    assert picture.notes == ("its broken EXIF left out",) and "exif" not in picture.extras
    write_image(tmp_path / f"out{suffix}", picture)
    assert "exif" not in read_image(tmp_path / f"out{suffix}").extras


def test_the_orientation_of_broken_exif_counts(tmp_path):
    pixels = samples(8, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif_of(296, 2, b"2\0", 2, orientation=6))
    picture = read_image(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, np.rot90(pixels, -1))
    assert "its broken EXIF left out" in picture.notes


def test_a_resolution_that_is_none_is_left_out(tmp_path):
    pixels = samples(8, 9, 1)
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 4294967295, 4294967295, 2
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.jpg", exif=exif)
    tifffile.imwrite(tmp_path / "b.tif", pixels[..., 0], resolution=(4294967295, 4294967295), resolutionunit=2)
    for name in ("a.jpg", "b.tif"):
        picture = read_image(tmp_path / name)
        assert "dpi" not in picture.extras and "its broken resolution left out" in picture.notes
        for suffix in (".png", ".tif", ".jpg"):
            write_image(tmp_path / f"out{suffix}", picture)
    write_image(tmp_path / "c.jpg", Picture(pixels, extras={"dpi": (70_000.0, 70_000.0)}))  # more than JPEG holds
    write_image(tmp_path / "c.png", Picture(pixels, extras={"dpi": (70_000.0, 70_000.0)}))
    assert "dpi" not in read_image(tmp_path / "c.jpg").extras
    assert read_image(tmp_path / "c.png").extras["dpi"] == pytest.approx((70_000, 70_000), rel=1e-4)


# === PNG whose data end early ===


def png(rows: int, height: int, interlaced: int = 0) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 100, height, 8, 0, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + bytes([row % 255] * 100) for row in range(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_png_whose_data_end_early_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30, 100))
    with pytest.raises(FileError, match=r"a\.png: cannot be read: its compressed data end before the last row"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(1, 1))
    assert read_image(tmp_path / "b.png").pixels.shape == (1, 100, 1)
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):  # black ones that are complete
        Image.new(mode, (37, 21)).save(tmp_path / "c.png")
        assert not read_image(tmp_path / "c.png").samples[..., :1].any()


@pytest.mark.parametrize("width, height", [(1, 1), (3, 5), (9, 8), (40, 33)])
@pytest.mark.parametrize("bits, samples_per_pixel", [(1, 1), (8, 3)])
def test_rows_of_interlaced_png_are_counted(width, height, bits, samples_per_pixel):
    def content(lack: int) -> io.BytesIO:
        spans = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        sizes = [(len(range(left, width, dx)), len(range(top, height, dy))) for left, top, dx, dy in spans]
        size = sum(rows * (1 + -(-columns * bits * samples_per_pixel // 8)) for columns, rows in sizes if columns)
        head = struct.pack(">IIBBBBB", width, height, bits, 2 if samples_per_pixel == 3 else 0, 0, 0, 1)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(size - lack))))
        parts = [struct.pack(">I", len(data)) + name + data + bytes(4) for name, data in chunks]
        return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    assert png_is_complete(content(0)) and not png_is_complete(content(1))


# === Ordinary photographs ===


def test_the_first_frame_of_a_camera_file_is_read(tmp_path):
    pixels = samples(24, 20, 3)
    small = Image.fromarray(pixels[:9, :9])
    Image.fromarray(pixels).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small], quality=95)
    Image.fromarray(pixels).save(tmp_path / "b.jpg", quality=95)
    picture = read_image(tmp_path / "a.jpg")
    assert np.array_equal(picture.pixels, read_image(tmp_path / "b.jpg").pixels)
    assert picture.notes == ("the first of 2 frames",)


@pytest.mark.parametrize("name, encode", [
    ("a.avif", lambda x: imagecodecs.avif_encode(x, level=100)),
    ("a.jp2", lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="jp2")),
    ("a.j2k", lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="j2k")),
    ("a.jxl", lambda x: imagecodecs.jpegxl_encode(x, lossless=True)),
])  # fmt: skip
def test_photographs_of_newer_formats_are_read(name, encode, tmp_path):
    pixels = samples(24, 21, 3)
    (tmp_path / name).write_bytes(encode(pixels))
    with open_image(tmp_path / name) as source:
        assert source.shape() == (24, 21, 3)
        assert np.abs(source.read().pixels.astype(int) - pixels).max() <= (3 if name == "a.avif" else 0)
    with pytest.raises(FileError, match="which is only read"):
        write_image(tmp_path / f"out{name[1:]}", Picture(pixels))
    with pytest.raises(FileError, match="more than the 100 allowed"):
        read_image(tmp_path / name, max_pixels=100)


def test_bits_beyond_eight_are_kept(tmp_path):
    deep = samples(24, 21, 3, dtype="uint16") * 257
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(deep, level=0, codecformat="jp2"))
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(deep, lossless=True))
    for name in ("a.jp2", "a.jxl"):
        assert np.array_equal(read_image(tmp_path / name).pixels, deep)
    for bits in (10, 12):
        content = imagecodecs.avif_encode(deep >> (16 - bits), level=100, bitspersample=bits)
        (tmp_path / "a.avif").write_bytes(content)
        found = read_image(tmp_path / "a.avif").pixels
        assert sample_bits(content) == bits and found.dtype == np.uint16
        assert np.abs(found / 65535 - deep / 65535).max() < 6 / 2**bits


# === What lies beside images in a folder ===


def test_what_is_no_image_is_named_and_left(tmp_path, capsys):
    for name in ("b.png", "a.png", "photo.jfif"):
        Image.fromarray(samples(8, 9)).save(tmp_path / name, format="PNG")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".hidden.png").write_bytes(b"")
    for name in ("c.heic", "d.HEIC", "notes", "e.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    names = [path.name for path in find_images([tmp_path])]
    assert names == ["a.png", "b.png", "lost.png", "photo.jfif"]
    computer = Computer(RestorationTask())
    console = Console(width=1000)
    predict_files(lambda path: computer, [str(tmp_path)], PredictionOptions(output=tmp_path / "out"), console)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {tmp_path}: 4 files of other kinds left out: .heic, .txt, notes",
        f"note: {tmp_path}: pipes, sockets or devices left out: pipe.png",
    ]


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        place = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(place)
        for path in (tmp_path / "pipe.png", tmp_path / "socket.png", Path("/dev/zero")):
            with pytest.raises(FileError, match="is a pipe, socket or device, not a file"):
                read_image(path)


def test_heic_is_named(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ConvUNextError, match="is a HEIC photograph, which is not read. Convert it"):
        read_image(tmp_path / "a.heic")


def test_images_are_taken_when_those_before_are_written(tmp_path):
    path, sizes = tmp_path / "a.tif", []

    def pictures():
        for _ in range(3):
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
            yield Picture(np.random.default_rng(0).integers(0, 255, (200, 300, 1), "uint8"))

    write_images(path, pictures(), 3)
    assert sizes[1] > 50_000 and sizes[2] > 100_000 and tifffile.imread(path).shape == (3, 200, 300)
