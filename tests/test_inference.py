"""Denoising of files and certificates: exact tiles, any unit and type, every bad file named, nothing overwritten."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.noise import add_gaussian_noise, estimate_sigma
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError
from dl_techniques.export.certify import certify
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.settings import DenoisingOptions
from dl_techniques.inference.tiling import plan_tiles
from dl_techniques.inference.tta import symmetric_moments
from dl_techniques.metrics import psnr
from dl_techniques.models.convunext.model import ConvUNextModel
from dl_techniques.models.convunext.presets import shipped_presets
from dl_techniques.models.convunext.receptive import receptive_radius
from dl_techniques.tasks.denoising.noise_report import inspect_noise
from models import (
    DENOISER,
    denoise_files,
    denoise_pixels,
    image,
    randomize,
    relative_difference,
    run,
    small_model,
    smoothing_engine,
)

# === symmetries ===


@pytest.mark.parametrize("count, turns", [(2, {0, 2}), (4, {0, 1, 2, 3}), (8, {0, 1, 2, 3})])
def test_mean_over_symmetries_turns_with_the_image(count, turns):
    weights = np.random.default_rng(0).normal(size=(12, 12, 1))  # a function of the position: turns matter
    x = np.random.default_rng(1).normal(size=(12, 12, 1))

    def mean(picture: np.ndarray) -> np.ndarray:
        return symmetric_moments(lambda y: weights * y, picture, count)[0]

    for quarters in range(4):
        same = np.allclose(np.rot90(mean(x), quarters), mean(np.rot90(x, quarters)), atol=1e-6)
        assert same == (quarters in turns)
    assert np.allclose(mean(x)[:, ::-1], mean(x[:, ::-1]), atol=1e-6) == (count == 8)


def test_disagreement_of_symmetries():
    x = image(20, 31, 3)
    mean, deviation = symmetric_moments(lambda y: 2 * y, x, 8)
    assert np.allclose(mean, 2 * x) and deviation.shape == x.shape and deviation.max() < 1e-6
    values = iter(range(8))
    mean, deviation = symmetric_moments(lambda y: np.full_like(y, 1000 + next(values)), x, 8)
    assert np.allclose(mean, 1003.5) and np.allclose(deviation, np.std(range(8)), rtol=1e-4)
    with pytest.raises(ArgumentError, match="tta.*3"):
        symmetric_moments(lambda y: y, x, 3)


# === tiles ===


@given(height=st.integers(1, 200), width=st.integers(1, 200), tile=st.integers(40, 90), halo=st.integers(0, 15))
def test_tiles_cover_every_pixel_once_with_its_halo(height, width, tile, halo):
    seen = np.zeros((height, width), int)
    for part in plan_tiles(height, width, tile, halo, multiple=4):
        seen[part.write] += 1
        for read, write, keep, extent in zip(part.read, part.write, part.keep, (height, width), strict=True):
            assert read.start % 4 == 0 and read.stop - read.start <= tile
            assert read.start <= max(write.start - halo, 0) and read.stop >= min(write.stop + halo, extent)
            assert (write.start - read.start, write.stop - read.start) == (keep.start, keep.stop)
    assert (seen == 1).all()


@pytest.mark.parametrize("downsample", ["conv", "max"])
@pytest.mark.parametrize("depth, blocks, kernel", [(2, 1, 3), (3, 1, 5), (2, 2, 7)])
def test_tiled_result_is_that_of_the_whole_image(depth, blocks, kernel, downsample):
    design = {"depth": depth, "blocks_per_level": blocks, "block_kernel_size": kernel, "downsample": downsample}
    model = small_model(input_shape=(None, None, 1), **{**DENOISER, **design, "stem_kernel_size": 7})
    randomize(model)
    radius, multiple = receptive_radius(model), 2**depth
    x = image(2 * radius + 61, 2 * radius + 90, 1)

    def function(crop: np.ndarray) -> np.ndarray:
        return run(model, crop[None])[0][0]

    def tiled_with(halo: int) -> np.ndarray:
        result = np.empty_like(whole)
        for part in plan_tiles(*x.shape[:2], 2 * radius + 48, halo, multiple):
            result[part.write] = function(x[part.read])[part.keep]
        return result

    whole = function(x)
    tiled = tiled_with(radius)
    assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()
    short = tiled_with(multiple)
    assert np.abs(short - whole).max() > 1e-4 * np.abs(whole).max()


def test_no_input_beyond_the_radius_counts():
    model = small_model(input_shape=(None, None, 1), **DENOISER)
    randomize(model)
    radius = receptive_radius(model)
    x = image(1, 8, 4 * radius, 1)
    changed = x.copy()
    changed[:, :, 2 * radius :] += 1
    before, after = run(model, x)[0], run(model, changed)[0]
    assert np.array_equal(before[:, :, : radius - 1], after[:, :, : radius - 1])
    assert not np.array_equal(before, after)


def test_tile_without_room_for_its_halo_is_refused():
    with pytest.raises(ArgumentError, match="`tile` must be at least 84 for a halo of 40 pixels. Received: tile=80"):
        list(plan_tiles(500, 500, 80, 40, 4))


# === any unit, type and value ===


def test_the_unit_of_intensities_does_not_matter(engine):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 1), dtype="uint8")
    exact = denoise_pixels(pixels.astype("float64"), engine)
    assert np.array_equal(denoise_pixels(pixels, engine), np.clip(np.rint(exact), 0, 255))
    wide = denoise_pixels(pixels.astype("uint16") * 257, engine)
    assert np.abs(wide - np.clip(257 * exact, 0, 65535)).max() <= 1
    for unit in (1 / 255, 4095 / 255, 1e-30, 1e25):
        scaled = denoise_pixels(pixels * np.float64(unit), engine)
        assert relative_difference(scaled, unit * exact) <= 1e-5


def test_colours_go_through_a_grey_model_one_by_one(engine):
    pixels = image(20, 30, 3)
    result = denoise_pixels(pixels, engine)
    for c in range(3):
        assert np.array_equal(result[..., c : c + 1], denoise_pixels(pixels[..., c : c + 1], engine))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 500, 1), (2, 3, 3)])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_flat_images_of_any_size_are_finite_and_black_stays_black(shape, value, engine):
    result = denoise_pixels(np.full(shape, value, "float32"), engine)
    assert result.shape == shape and np.isfinite(result).all()
    assert value or not result.any()


def test_samples_that_are_no_numbers_stay_and_spoil_nothing(engine):
    pixels = image(30, 40, 1)
    pixels[3, 4], pixels[5, 6] = np.nan, np.inf
    result = denoise_pixels(pixels, engine)
    assert np.isnan(result[3, 4]) and np.isinf(result[5, 6]) and np.isfinite(result).sum() == result.size - 2
    with pytest.raises(ArgumentError, match="must have at least one finite sample"):
        denoise_pixels(np.full((2, 2, 1), np.nan), engine)


def test_results_are_averaged_over_symmetries_of_the_whole_image(engine):
    pixels, calls = image(50, 61, 3), []
    result = denoise_pixels(pixels, engine, tta=2, on_tile=lambda done, total: calls.append((done, total)))
    upside_down = denoise_pixels(pixels[::-1, ::-1], engine)[::-1, ::-1]
    assert relative_difference(result, (denoise_pixels(pixels, engine) + upside_down) / 2) <= 1e-6
    assert calls == [(number, 6) for number in range(1, 7)]


def test_model_of_other_channels_is_refused(engine):
    with pytest.raises(ArgumentError, match="`pixels` must have 3 channels for colour"):
        denoise_pixels(image(4, 4, 1), Engine(engine.function, 3, "colour", engine.path))


# === what is said of the noise ===


def scene(sigma: float, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with values in [0, 1] and the same with noise, each channel with its own."""
    y, x = np.mgrid[:512, :512] / 512
    clean = np.repeat((0.5 + 0.3 * np.sin(5 * x + 2 * y))[..., None].astype("float32"), channels, axis=2)
    return clean, add_gaussian_noise(clean, sigma, np.random.default_rng(0))


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_level_and_gain_are_estimated_without_the_truth(sigma):
    clean, noisy = scene(sigma)
    engine = smoothing_engine()

    def function(x: np.ndarray) -> np.ndarray:
        return engine.function(x[None])[0]

    denoised = function(noisy)
    report = inspect_noise(noisy, denoised, function)
    gain = 10 * np.log10(np.mean((noisy - clean) ** 2) / np.mean((denoised - clean) ** 2))
    assert report.sigma == pytest.approx(sigma, rel=0.1)
    assert report.gain == pytest.approx(gain, abs=0.7)
    assert report.warnings == ()


def test_noise_that_is_not_white_gaussian_raises_a_warning(tmp_path):
    engine = smoothing_engine()

    def function(x: np.ndarray) -> np.ndarray:
        return engine.function(x[None])[0]

    def warnings(noisy: np.ndarray) -> str:
        return " ".join(inspect_noise(noisy, function(noisy), function).warnings)

    clean, noisy = scene(0.05)
    assert "not white" in warnings(clean + np.repeat((noisy - clean)[::2], 2, axis=0))
    assert "clipped" in warnings(np.clip(scene(0.5)[1], 0, 1))
    rough = np.uint8(np.clip(255 * noisy, 0, 255))[..., 0]
    Image.fromarray(rough).save(tmp_path / "a.jpg", quality=5)
    assert "JPEG" in warnings(read_image(tmp_path / "a.jpg").pixels.astype("float32"))


def test_images_too_small_to_judge_are_not_judged():
    assert estimate_sigma(np.ones((1, 5, 1))) == 0.0
    report = inspect_noise(np.ones((3, 3, 1), "float32"), np.ones((3, 3, 1), "float32"), lambda x: x)
    assert report.gain is None and report.warnings == ()


# === files ===


def options(output, preset, **kwargs) -> DenoisingOptions:
    """Return options that run the backend under test, not what this machine has besides."""
    return DenoisingOptions(output=output, model=str(preset), **{"engine": "keras", **kwargs})


def test_a_folder_goes_through_and_bad_files_are_named(preset, tmp_path, capfd):
    photos, output = tmp_path / "photos", tmp_path / "clean"
    photos.mkdir()
    write_image(photos / "grey.png", Picture(np.uint8(255 * image(40, 50, 1))))
    write_image(photos / "deep.png", Picture(np.uint16(65535 * image(20, 30, 3)), np.uint16(65535 * image(20, 30))))
    write_image(photos / "float.tif", Picture(image(20, 30, 1)))
    Image.fromarray(np.uint8(255 * image(20, 30, 3))).save(photos / "photo.jpg")
    (photos / "broken.png").write_bytes(b"<html>")
    assert main(["denoise", str(photos), "-o", str(output), "--model", str(preset), "--compare"]) == 1
    out, err = capfd.readouterr()
    assert "refused" in out and "broken.png" in out and "1 of 5 images refused" in err
    names = sorted(path.name for path in output.iterdir())
    results = ["deep.png", "float.tif", "grey.png", "photo.png"]
    assert names == sorted(results + [f"{name.rsplit('.', 1)[0]}-compare.png" for name in results])
    deep, source = read_image(output / "deep.png"), read_image(photos / "deep.png")
    assert deep.pixels.dtype == np.uint16 and np.array_equal(deep.alpha, source.alpha)
    assert not np.array_equal(deep.pixels, source.pixels)
    assert read_image(output / "float.tif").pixels.dtype == np.float32
    assert read_image(output / "grey-compare.png").pixels.shape == (48, 3 * 58, 3)


def test_results_are_never_overwritten_unless_asked(preset, tmp_path):
    photo, output = tmp_path / "photo.png", tmp_path / "clean.png"
    write_image(photo, Picture(np.uint8(255 * image(20, 20, 1))))
    console = Console(quiet=True)
    (first,) = denoise_files([photo], options(output, preset), console)
    assert first.error == "" and first.output == output
    with pytest.raises(FileError, match="clean.png: exists already. Choose another --output, or add --overwrite"):
        denoise_files([photo], options(output, preset), console)
    denoise_files([photo], options(output, preset, overwrite=True), console)
    with pytest.raises(FileError, match="photo.png: exists already. Choose another --output."):
        denoise_files([photo], options(tmp_path, preset, overwrite=True), console)


def test_two_inputs_never_become_one_output(preset, tmp_path):
    for suffix in ("png", "jpg"):
        Image.new("L", (8, 8)).save(tmp_path / f"same.{suffix}")
    with pytest.raises(FileError, match="same.jpg: and same.png would both become same.png"):
        denoise_files([tmp_path], options(tmp_path / "out", preset), Console(quiet=True))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png", "--output", "out"], "nowhere.png: does not exist"),
        (["photo.png", "--output", "out", "--model", "denoise-purple"], "`model` must be a file"),
        (["photo.png", "--output", "out", "--model", "lost.keras"], "lost.keras: does not exist"),
    ],
)
def test_wrong_paths_and_models_are_refused(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("photo.png")
    assert main(["denoise", *arguments]) in (1, 2)
    assert message in "".join(capfd.readouterr())


# === presets ===


@pytest.mark.each_backend
def test_preset_gives_the_same_model(preset):
    model = ConvUNextModel.from_preset(preset)
    again = ConvUNextModel.from_preset(str(preset), dtype="mixed_bfloat16")
    assert model.residual_learning and again.dtype_policy.name == "mixed_bfloat16"
    x = image(1, 20, 30, 1)
    assert np.array_equal(run(model, x)[0], load_engine(preset).function(x))
    with pytest.raises(FileError, match="exists already"):
        model.save_to_preset(preset)


@pytest.mark.each_backend
def test_half_precision_preset_is_half_as_large(preset, tmp_path):
    model = ConvUNextModel.from_preset(preset)
    model.save_to_preset(tmp_path / "half", dtype="float16")
    x = image(1, 20, 30, 1)
    assert relative_difference(run(ConvUNextModel.from_preset(tmp_path / "half"), x)[0], run(model, x)[0]) < 5e-3


@pytest.mark.parametrize("damage", ["bit", "truncated", "missing", "newer", "nested", "architecture"])
def test_damaged_presets_are_refused_by_name(damage, tmp_path):
    model = small_model(input_shape=(None, None, 1), **DENOISER)
    folder = tmp_path / "preset"
    model.save_to_preset(folder)
    weights, config, metadata = (folder / n for n in ("model.weights.safetensors", "config.json", "metadata.json"))
    if damage == "missing":
        weights.unlink()
    elif damage == "newer":
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "format": 2}))
    elif damage in ("nested", "architecture"):
        content = json.loads(config.read_text())
        content["config"] |= {"final_activation": {"module": "os"}} if damage == "nested" else {"initial_filters": 5}
        config.write_text(json.dumps(content))
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content if damage == "bit" else content[:-10])
    with pytest.raises(ConvUNextError, match=str(folder)):
        ConvUNextModel.from_preset(folder)


@pytest.mark.each_backend
@pytest.mark.parametrize("name", shipped_presets())
def test_shipped_presets_keep_their_promise(name):
    engine = load_engine(name)
    assert sum(path.stat().st_size for path in engine.path.iterdir()) <= 4e6
    card = read_card(engine.path).as_dict()
    assert card["task"] == "denoise" and "non-commercial" in card["training"]["terms"]
    assert card["certificate"]["holds"] and card["metrics"]["psnr_db"]
    certificate = certify(engine, sizes=((97, 61),))
    assert certificate.holds and certificate.errors.max() <= 1e-5
    for sigma in (5, 25, 50):
        clean, noisy = (x[:128, :128] for x in scene(sigma / 255, engine.channels))
        once = psnr(denoise_pixels(noisy, engine), clean)
        assert once > psnr(noisy, clean) + 6
        assert psnr(denoise_pixels(noisy, engine, tta=4), clean) > once + 0.02


@pytest.mark.parametrize("channels, name", [(1, "denoise-gray"), (3, "denoise-color")])
def test_channels_choose_the_shipped_model(channels, name, tmp_path):
    _, noisy = scene(25 / 255, channels)
    pixels = np.uint8(np.clip(np.rint(255 * noisy[:64, :72]), 0, 255))
    write_image(tmp_path / "a.png", Picture(pixels))
    denoise_files([tmp_path / "a.png"], DenoisingOptions(output=tmp_path / "b.png"), Console(quiet=True))
    expected = denoise_pixels(pixels, load_engine(name))
    assert np.abs(read_image(tmp_path / "b.png").pixels.astype(int) - expected).max() <= 1
    assert np.abs(expected.astype(int) - pixels).max() > 20


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="`preset` must be a preset's folder or one of"):
        ConvUNextModel.from_preset("denoise-purple")
