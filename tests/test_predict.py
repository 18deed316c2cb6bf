"""Trained models applied to files: what evaluation computes, any size, tiles as the whole, every bad file named."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from bad_images import ODD, REFUSED, archive, samples, write_bad_images
from dl_techniques.card import write_card
from dl_techniques.cli import main
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import Picture, open_windows, read_image, write_image
from dl_techniques.inference.memory import AUTO_SHARE, bytes_per_pixel, free_memory, parse_memory, plan_tile
from dl_techniques.inference.network import Network, min_tile
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import PredictionOptions
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.models.convunext.receptive import receptive_radius
from dl_techniques.tasks.segmentation.classes import Classes
from dl_techniques.tasks.segmentation.masks import read_mask
from models import image, predict_files, randomize, small_model

QUIET = Console(quiet=True)
DESIGN = {"depth": 2, "initial_filters": 4, "stem_kernel_size": 3, "block_kernel_size": 3}


def save_segmenter(folder, outputs: int = 1, channels: int = 1, version: str = "v2", **card):
    """Save a random segmenter with the card of a run and return its file."""
    classes = Classes(tuple(range(max(outputs, 2))), tuple(f"class {n}" for n in range(max(outputs, 2))))
    model = small_model(
        input_shape=(None, None, channels),
        output_channels=outputs,
        convnext_version=version,
        final_activation=classes.activation,
        **DESIGN,
    )
    randomize(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    told = {"task": "segment", "channels": channels, "normalization": "standardize", "training": {"patch": 32}}
    write_card(folder / "model.keras", {**told, **classes.as_card(), **card})
    return folder / "model.keras"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("segmenter"))


def options(output, **kwargs) -> PredictionOptions:
    """Return options that run the backend under test, not what this machine has besides."""
    return PredictionOptions(output=output, **{"engine": "keras", **kwargs})


# === What comes out ===


@pytest.mark.parametrize("outputs, channels", [(1, 1), (3, 3), (2, 4)])
def test_masks_are_what_evaluation_computes(outputs, channels, tmp_path):
    outputs = 1 if outputs == 2 else outputs
    path = save_segmenter(tmp_path / "run", outputs, channels)
    write_image(tmp_path / "a.png", Picture(samples(33, 47, channels)))
    (result,) = predict_files(
        path.parent, [str(tmp_path / "a.png")], options(tmp_path / "out", probabilities=True, overlay=True), QUIET
    )
    assert result.error == "" and result.output == tmp_path / "out" / "a.png"
    engine, classes = load_engine(path), Predictor(path).task.classes
    pixels = standardize(read_image(tmp_path / "a.png", channels=channels).pixels)
    expected, _ = classes.decide(engine.function(pixels[None])[0])
    assert np.array_equal(read_mask(result.output), expected) and len(np.unique(expected)) > 1
    with Image.open(result.output) as file:
        assert file.mode == "P" and tuple(file.getpalette()[3:6]) == classes.colours[1]
    pages = tifffile.imread(tmp_path / "out" / "a-probabilities.tif")
    assert pages.dtype == np.float32
    assert np.array_equal(pages.reshape(33, 47, outputs), engine.function(pixels[None])[0])
    assert read_image(tmp_path / "out" / "a-overlay.png").pixels.shape == (33, 47, 3)


def test_restored_images_keep_type_depth_and_metadata(preset, tmp_path):
    Image.fromarray(samples(20, 30)).save(tmp_path / "a.png", icc_profile=b"profile", dpi=(300, 300))
    deep = Picture(300 * samples(20, 30, 1, dtype="uint16"), None, (), {"dpi": (300.0, 300.0), "icc_profile": b"own"})
    write_image(tmp_path / "b.tif", deep)
    tifffile.imwrite(tmp_path / "c.tif", samples(3, 20, 30, dtype="float32"), photometric="minisblack")
    arguments = ["predict", str(preset), str(tmp_path / "*.[pt]*"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--engine", "keras"]) == 0
    with Image.open(tmp_path / "out" / "a.png") as file:
        assert file.mode == "L" and file.info["icc_profile"] == b"profile" and round(file.info["dpi"][0]) == 300
    again = read_image(tmp_path / "out" / "b.tif")
    assert again.pixels.dtype == np.uint16 and again.extras == deep.extras
    stack = tifffile.imread(tmp_path / "out" / "c.tif")
    assert stack.shape == (3, 20, 30) and stack.dtype == np.float32
    source = tifffile.imread(tmp_path / "c.tif")
    assert np.array_equal(stack[1], Predictor(preset)(source[1][..., None]).pixels[..., 0])


def test_each_page_of_a_stack_is_an_image_of_its_own(segmenter, tmp_path):
    stack = samples(3, 20, 30)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    predict_files(segmenter, [str(tmp_path / "stack.tif")], options(tmp_path / "out", probabilities=True), QUIET)
    masks = tifffile.imread(tmp_path / "out" / "stack.tif")
    assert masks.dtype == np.uint8
    predictor = Predictor(segmenter)
    for page, mask in zip(stack, masks, strict=True):
        assert np.array_equal(mask, predictor(page[..., None]).pixels[..., 0])
    with pytest.raises(FileError, match="has no card"):
        predict_files(save_bare(tmp_path / "bare"), [str(tmp_path)], options(tmp_path / "o"), QUIET)


def save_bare(folder):
    folder.mkdir()
    small_model(input_shape=(None, None, 1), **DESIGN).save(folder / "model.keras")
    return folder / "model.keras"


def test_symmetries_average_and_disagree(segmenter, tmp_path):
    write_image(tmp_path / "a.png", Picture(samples(33, 47, 1)))
    arguments = ["predict", str(segmenter), str(tmp_path / "a.png"), "-o", str(tmp_path / "o")]
    assert main([*arguments, "--tta", "8", "--uncertainty", "--probabilities"]) == 0
    x = standardize(read_image(tmp_path / "a.png").pixels)
    function = load_engine(segmenter).function
    turned = []
    for quarters in range(4):
        for mirror in (False, True):
            view = np.rot90(x, quarters)
            output = function(np.ascontiguousarray(view[:, ::-1] if mirror else view)[None])[0]
            turned.append(np.rot90(output[:, ::-1] if mirror else output, -quarters)[..., 0])
    assert np.allclose(tifffile.imread(tmp_path / "o" / "a-probabilities.tif"), np.mean(turned, axis=0), atol=1e-6)
    uncertainty = tifffile.imread(tmp_path / "o" / "a-uncertainty.tif")
    assert np.allclose(uncertainty, np.std(turned, axis=0), atol=1e-6) and uncertainty.max() > 1e-3
    with pytest.raises(ArgumentError, match="`uncertainty` needs --tta"):
        predict_files(segmenter, ["."], options(tmp_path / "p", uncertainty=True), QUIET)


# === Tiles ===


def engine_of(version: str, seed: int = 0, **kwargs) -> Engine:
    arguments = {"input_shape": (None, None, 1), "final_activation": "sigmoid", **DESIGN, **kwargs}
    model = small_model(convnext_version=version, **arguments)
    randomize(model, seed)
    return Engine(keras_function(model), 1, "model", Path("model"), model, model.input_shape[:2])


@pytest.mark.parametrize("downsample", ["max", "conv"])
def test_tiles_without_statistics_give_what_the_whole_gives(downsample):
    engine = engine_of("v1", downsample=downsample)
    x = image(131, 187, 1)
    whole = engine.function(x[None])[0]
    for tile in (80, 101, 130):
        tiled, passes = Network(engine).apply(x, tile)
        assert passes[0].tiles > 1 and np.abs(tiled - whole).max() <= 1e-6 * np.ptp(whole)


@pytest.mark.each_backend
def test_statistics_of_tiles_add_up_to_those_of_the_whole():
    engine = engine_of("v2")
    x = image(131, 187, 1)
    x[:, 90:] *= 0.2  # two parts, so that no tile is like the whole
    whole = engine.function(x[None])[0]
    by_pass = {}

    def receive(part, output, number):
        by_pass.setdefault(number, np.empty_like(whole))[part.write] = output

    for tile in (101, 130):
        by_pass.clear()
        passes = Network(engine).scan(x, tile, receive)
        errors = [float(np.abs(by_pass[n + 1] - whole).max() / np.ptp(whole)) for n in range(len(passes))]
        assert errors[0] > 1e-2 and errors[-1] <= 1e-5 and len(passes) <= 6, errors
        assert all(later < earlier for earlier, later in zip(errors[:3], errors[1:3], strict=False))


def test_tiles_by_themselves_are_normalized_over_a_patch():
    engine = engine_of("v2")
    x = image(64, 96, 1)
    network = Network(engine, "tile", patch=32)
    halo = -(-receptive_radius(engine.model) // 4) * 4
    assert network.smallest_tile == 32 + 2 * halo
    padded = np.pad(x, ((40, 40), (40, 40), (0, 0)), mode="reflect")
    result, passes = network.apply(padded, network.smallest_tile)
    assert len(passes) == 1 and np.isfinite(result).all()
    with pytest.raises(ArgumentError, match="does not name its patch"):
        Network(engine, "tile")


def test_model_of_a_fixed_size_takes_any():
    fixed = engine_of("v1", input_shape=(64, 64, 1))
    assert Network(fixed).apply(image(70, 130, 1), 100)[0].shape == (70, 130, 1)


# === Memory ===


@pytest.mark.parametrize(
    "text, expected", [("2GB", 2 * 10**9), ("1.5 gib", 1.5 * 2**30), ("700M", 7e8), ("12345", 12345)]
)
def test_amounts_of_memory(text, expected):
    assert parse_memory(text) == expected


def test_auto_is_most_of_what_is_free_or_what_a_container_leaves(tmp_path):
    free = free_memory()
    assert 0.5 * AUTO_SHARE * free < parse_memory("auto") < 2 * AUTO_SHARE * free
    for name, text in (
        ("memory.max", "700000000"), ("memory.current", "500000000"), ("memory.stat", "anon 1\ninactive_file 100000000")
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == 300_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 300_000_000
    old = tmp_path / "old" / "memory"
    old.mkdir(parents=True)
    for name, text in (
        ("limit_in_bytes", "400000000"), ("usage_in_bytes", "500000000"), ("stat", "total_inactive_file 0")
    ):  # fmt: skip
        (old / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path / "old") == 0


def test_tiles_fit_the_memory_or_are_refused():
    network = Network(engine_of("v2"))
    for memory in (10**7, 10**8, 10**9):
        tile = plan_tile(network, memory)
        assert tile % 4 == 0 and tile**2 * bytes_per_pixel(network) <= memory
    assert min_tile(21, 4, 4) == 52
    with pytest.raises(ArgumentError, match="`max_memory` must leave .* MB for a tile of .* Raise --max-memory"):
        plan_tile(network, 10**5)
    for text in ("lots", "0GB", "-1"):
        with pytest.raises(ArgumentError, match="must be auto or an amount of memory such as 2GB"):
            parse_memory(text)


# === Folders ===


def test_thirty_bad_files_of_two_hundred_are_named_and_spoil_nothing(segmenter, tmp_path, capfd):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    write_bad_images(photos)
    for make in ODD:
        make(photos)
    for number in range(170 - len(ODD)):
        Image.fromarray(samples(16, 16)).save(photos / f"{number:03}.png")
    assert len(list(photos.iterdir())) == 200
    assert main(["predict", str(segmenter), str(photos), "-o", str(output)]) == 1
    out, err = capfd.readouterr()
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    assert len(refused) == 30 and "30 of 200 images refused" in err and "170 of 200 images done" in out
    for name in REFUSED:
        (line,) = [line for line in refused if f"/{name}:" in line]
        assert len(line.split(f"/{name}: ")[1]) > 15
    made = sorted(path.stem for path in output.iterdir())
    assert len(made) == 170 and "two\nlines" in made and not any(name.startswith(".") for name in made)
    assert sorted(path.stem for path in photos.iterdir() if path.name not in REFUSED) == made
    for path in output.iterdir():
        assert path.suffix == ".tif" or read_mask(path).shape == (16, 16)


def test_killed_run_goes_on_where_it_was(segmenter, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(40):
        Image.fromarray(samples(48, 48)).save(photos / f"{number:03}.png")
    command = [sys.executable, "-m", "dl_techniques.cli", "predict", str(segmenter), str(photos), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(output.glob("*.png"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert 5 <= len(done) < 40
    assert all(read_mask(path).shape == (48, 48) for path in done)
    results = predict_files(segmenter, [str(photos)], options(output), QUIET)
    assert sum(result.skipped for result in results) == len(done)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert sorted(path.name for path in output.glob("*.png")) == [f"{number:03}.png" for number in range(40)]
    again = predict_files(segmenter, [str(photos)], options(output, overwrite=True), QUIET)
    assert not any(result.skipped for result in again)


@pytest.mark.parametrize("command", ["predict", "denoise"])
def test_what_is_misspelt_among_several_is_named_and_the_rest_goes_on(command, preset, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty"):
        Path(name).mkdir()
    for name in ("a.png", "photos/b.png"):
        Image.fromarray(samples(16, 16)).save(name)
    Path("gone.png").symlink_to("nowhere")
    begin = ["predict", str(preset)] if command == "predict" else ["denoise", "--no-inspect", "--model", str(preset)]
    misspelt = ["aa.png", "*.tiff", "empty", "gone.png"]
    assert main([*begin, "aa.png", "a.png", *misspelt[1:], "photos", "-o", "out.png", "--engine", "keras"]) == 1
    out, err = capfd.readouterr()
    assert sorted(path.name for path in Path("out.png").iterdir()) == ["a.png", "b.png"]
    refused = [line for line in out.splitlines() if line.startswith("refused")]
    reasons = ("does not exist. Check the path.", "matches no file. Check", "holds no image file", "does not exist.")
    for line, name, reason in zip(refused, misspelt, reasons, strict=True):
        assert line.startswith(f"refused  {name}: {reason}")
    assert "4 of 6 images refused" in err
    assert main([*begin, *misspelt, "-o", "other", "--engine", "keras"]) == 2
    err = capfd.readouterr().err
    assert all(f"{name}: " in err for name in misspelt) and "none of the 4 can be read" in err
    assert not Path("other").exists() and "Traceback" not in err


def test_sources_are_never_replaced(segmenter, tmp_path):
    Image.fromarray(samples(16, 16)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(FileError, match="a.png: exists already. Choose another --output."):
            predict_files(segmenter, [str(tmp_path)], options(tmp_path, overwrite=overwrite), QUIET)
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png", "-o", "out"], "nowhere.png: does not exist"),
        (["*.tiff", "-o", "out"], "matches no file"),
        (["a.png", "-o", "mask.jpg"], "mask.jpg: is not a format for masks. Choose .png or .tif"),
        (["a.png", "-o", "out", "--max-memory", "1kB"], "Raise --max-memory"),
        (["a.png", "-o", "out", "--tile", "20"], "`tile` must be at least"),
    ],
)
def test_wrong_paths_and_settings_are_refused(arguments, message, segmenter, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_image(Path("a.png"), Picture(samples(100, 100, 1)))
    assert main(["predict", str(segmenter), *arguments]) in (1, 2)
    assert message in "".join(capfd.readouterr())
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.png"]


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "hostile", "escaping", "lost", "unknown task", "broken card"]
)
def test_bad_models_are_refused_by_name(damage, segmenter, tmp_path, capfd):
    path = tmp_path / "bad.keras"
    content = segmenter.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = content.index(b"model.weights.h5") + 4000
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "hostile":
        config = {"module": "os", "class_name": "system", "config": {"command": "true"}, "registered_name": None}
        path.write_bytes(archive(**{"metadata.json": b"{}", "config.json": json.dumps(config).encode()}))
    elif damage == "escaping":
        path.write_bytes(archive(**{"../config.json": b"{}"}))
    elif damage == "unknown task":
        path.write_bytes(content)
        write_card(path, {"task": "knit"})
    elif damage == "broken card":
        path = tmp_path / "bad.onnx"
        path.write_bytes(b"onnx")
    write_image(tmp_path / "a.png", Picture(samples(16, 16, 1)))
    assert main(["predict", str(path), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert path.name in err and "Traceback" not in err and not (tmp_path / "out").exists()


# === Images larger than the memory ===


@pytest.mark.parametrize("form", ["strips", "tiles", "plain"])
def test_windows_of_a_tiff_are_its_pixels(form, tmp_path):
    pixels = samples(301, 207, 3, dtype="uint16")
    extra = {"strips": {"rowsperstrip": 17, "compression": "zlib"}, "tiles": {"tile": (64, 48), "compression": "zlib"}}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **extra.get(form, {}))
    if form == "strips":
        with pytest.raises(FileError, match="in strips too large"), open_windows(tmp_path / "a.tif", 1000):
            pass
    with open_windows(tmp_path / "a.tif") as raster:
        assert raster.shape == pixels.shape and raster.dtype == np.uint16
        for rows, columns in ((slice(0, 301), slice(0, 207)), (slice(60, 130), slice(40, 97)), (slice(300, 301),) * 2):
            if columns.stop <= 207:
                assert np.array_equal(raster[rows, columns], pixels[rows, columns])


@pytest.mark.parametrize("version, standard", [("v1", "none"), ("v2", "standardize")])
def test_streamed_images_are_those_computed_whole(version, standard, tmp_path):
    path = save_segmenter(tmp_path / "run", version=version, normalization=standard)
    pixels = samples(300, 280, 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], rowsperstrip=16, compression="zlib")
    expected = Predictor(path)(pixels)
    small = Predictor(path, max_memory="6MB")
    assert not small.holds((300, 280, 1)) and Predictor(path).holds((300, 280, 1))
    wanted = options(tmp_path / "out", max_memory="6MB", probabilities=True)
    (result,) = predict_files(path, [str(tmp_path / "a.tif")], wanted, QUIET)
    assert result.error == "" and result.output == tmp_path / "out" / "a.tif"
    assert result.report.passes[0].tiles > 4
    probabilities = tifffile.imread(tmp_path / "out" / "a-probabilities.tif")
    assert np.abs(probabilities - expected.probabilities[..., 0]).max() <= (1e-6 if version == "v1" else 1e-5)
    mask = tifffile.imread(tmp_path / "out" / "a.tif")
    assert mask.dtype == np.uint8 and np.mean(mask != expected.pixels[..., 0]) <= 1e-4
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a-probabilities.tif", "a.tif"]


def test_streamed_restoration_keeps_the_type(preset, tmp_path):
    pixels = samples(300, 280, 1, dtype="uint16") * 300
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], tile=(64, 64))
    assert (
        main(["predict", str(preset), str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.tif"), "--max-memory", "4MB"])
        == 0
    )
    streamed, whole = tifffile.imread(tmp_path / "b.tif"), Predictor(preset)(pixels).pixels[..., 0]
    assert streamed.dtype == np.uint16 and np.abs(streamed.astype(int) - whole).max() <= 1


def test_what_cannot_be_streamed_is_refused_and_leaves_nothing(segmenter, tmp_path, capfd):
    write_image(tmp_path / "a.png", Picture(samples(300, 280, 1)))
    tifffile.imwrite(tmp_path / "nan.tif", np.full((300, 280), np.nan, "float32"), rowsperstrip=8)
    tifffile.imwrite(tmp_path / "torn.tif", samples(300, 280), tile=(32, 32))
    content = (tmp_path / "torn.tif").read_bytes()
    (tmp_path / "torn.tif").write_bytes(content[: len(content) // 2])
    inputs = [str(tmp_path / name) for name in ("a.png", "nan.tif", "torn.tif")]
    assert main(["predict", str(segmenter), *inputs, "-o", str(tmp_path / "out"), "--max-memory", "1MB"]) == 2
    assert main(["predict", str(segmenter), *inputs, "-o", str(tmp_path / "out"), "--max-memory", "5MB"]) == 1
    out = capfd.readouterr().out
    for word in ("must hold arrays of", "84000 samples that are NaN", "torn.tif: cannot be read", "3 refused"):
        assert word in out, word
    assert list((tmp_path / "out").iterdir()) == []


def test_masks_of_float_images_are_class_indices(segmenter):
    mask = Predictor(segmenter)(image(9, 12, 1)).pixels
    assert mask.dtype == np.uint8 and mask.shape == (9, 12, 1)
