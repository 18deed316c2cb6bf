"""A machine that runs exported artifacts needs neither Keras nor a backend, and gets the numbers of Keras."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dl_techniques.card import card_path, read_card, write_card
from dl_techniques.cli import main
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.predictor import Predictor
from dl_techniques.tasks.segmentation.masks import read_mask
from models import DENOISER, denoise_pixels, image, randomize, small_model

# Exports are made on TensorFlow, and what runs them is the same on every backend.
pytestmark = pytest.mark.only_backend("tensorflow")

ROOT = Path(__file__).parents[1]
PROVIDED = {"cyclopts", "imagecodecs", "numpy", "pillow", "psutil", "rich", "tifffile", "onnxruntime", "openvino"}
TRAINS = ("keras", "tensorflow", "jax", "torch", "safetensors", "filelock", "platformdirs", "tomli_w",
          "tf2onnx", "onnx")  # fmt: skip
QUIET = Console(quiet=True)


def exported(folder: Path, name: str, card: dict | None = None, **kwargs) -> Path:
    """Export a tiny model of random weights."""
    model = small_model(**{"depth": 2, "initial_filters": 4, **kwargs})
    randomize(model)
    source = folder / f"{name}.keras"
    model.save(source)
    write_card(source, card or {})
    path = folder / name
    export_model(source, ExportOptions(output=path), QUIET)
    return path


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("denoisers")
    card = {"task": "denoise"}
    return [exported(folder, name, card, input_shape=(None, None, 1), **DENOISER) for name in ("a.onnx", "a.xml")]


def without_keras(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run the command where importing anything that trains fails, as on a machine that does not have it."""
    refuse = f"import sys; sys.modules.update(dict.fromkeys({TRAINS}))"
    code = f"{refuse}; from dl_techniques.cli import main; sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_artifacts_denoise_without_keras_as_with_it(denoisers, tmp_path):
    pixels = np.uint16(60000 * image(70, 90, 1))
    write_image(tmp_path / "noisy.tif", Picture(pixels))
    expected = denoise_pixels(pixels, load_engine(f"{denoisers[0]}.keras")).astype("int64")
    for path in denoisers:
        output = f"{path.suffix[1:]}.tif"
        result = without_keras("denoise", "noisy.tif", "-o", output, "--model", str(path), "--tile", "64", cwd=tmp_path)
        assert result.returncode == 0 and not result.stderr, result.stderr
        assert np.abs(read_image(tmp_path / output).pixels - expected).max() <= 1
        result = without_keras("predict", str(path), "noisy.tif", "-o", f"p-{output}", cwd=tmp_path)
        assert result.returncode == 0 and not result.stderr, result.stderr
        assert np.abs(read_image(tmp_path / f"p-{output}").pixels - expected).max() <= 1


def test_artifacts_are_certified_and_evaluated_without_keras(denoisers, tmp_path):
    for path in denoisers:
        result = without_keras("certify", str(path), cwd=tmp_path)
        assert result.returncode == 0 and not result.stderr, result.stderr
        assert (
            read_card(path).as_dict()["certificate"]["holds"]
            and f"written to the card: {card_path(path)}" in result.stdout
        )

    mask = np.uint8(255 * (image(20, 24) > 0.5))
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(mask).save(tmp_path / folder / "1.png")
    classes = [{"name": "dark", "mask_value": 0}, {"name": "bright", "mask_value": 255}]
    card = {"classes": classes, "ignored_mask_values": [], "every_other_value_is_foreground": False, "channels": 1}
    card["normalization"] = "standardize"
    path = exported(tmp_path, "s.xml", card, input_shape=(None, None, 1), output_channels=1, final_activation="sigmoid")
    folders = ["--images=images", "--masks=masks"]
    result = without_keras("evaluate", path.name, *folders, "-o", "report", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    metrics = [json.loads((tmp_path / "report" / "metrics.json").read_text())]
    assert main(["evaluate", f"{path}.keras", f"--images={tmp_path}/images", f"--masks={tmp_path}/masks",
                 f"--output={tmp_path}/keras"]) == 0  # fmt: skip
    metrics.append(json.loads((tmp_path / "keras" / "metrics.json").read_text()))
    assert metrics[0]["mean_dice"] == pytest.approx(metrics[1]["mean_dice"], abs=1e-3)


SEGMENTER = {
    "task": "segment",
    "classes": [{"name": name, "mask_value": value} for value, name in enumerate(("dark", "grey", "bright"))],
    "ignored_mask_values": [],
    "every_other_value_is_foreground": False,
    "channels": 1,
    "normalization": "standardize",
}


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("tiles", [False, True])
def test_artifacts_segment_without_keras_as_with_it(suffix, tiles, tmp_path):
    """V2 with the normalization inside, whole; and for tiles, read and written in parts."""
    model = small_model(input_shape=(None, None, 1), depth=2, initial_filters=4, output_channels=3,
                        stem_kernel_size=3, block_kernel_size=3, final_activation="softmax")  # fmt: skip
    randomize(model)
    model.save(tmp_path / "s.keras")
    write_card(tmp_path / "s.keras", SEGMENTER)
    path = tmp_path / f"s{suffix}"
    export_model(tmp_path / "s.keras", ExportOptions(output=path, tiles=tiles), QUIET)
    pixels = np.uint8(255 * image(104, 120, 1))
    write_image(tmp_path / "a.tif", Picture(pixels))
    flags = ["--max-memory", "2.5MB", "--probabilities"] if tiles else ["--probabilities", "--overlay"]
    result = without_keras("predict", path.name, "a.tif", "-o", "out", *flags, cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr
    assert ("read and written in parts" in result.stdout) == tiles
    expected = Predictor(tmp_path / "s.keras")(pixels)
    probabilities = tifffile.imread(tmp_path / "out" / "a-probabilities.tif")
    assert np.abs(probabilities - expected.probabilities).max() <= 1e-4
    mask = read_mask(tmp_path / "out" / ("a.tif" if tiles else "a.png"))
    assert mask.shape == (104, 120) and np.mean(mask != expected.pixels[..., 0]) <= 1e-4
    assert len(np.unique(mask)) > 1


def test_page_shows_artifacts_without_keras(denoisers, tmp_path):
    server = str(Path(__file__).with_name("page_server.py"))
    absent = [name for name in TRAINS if name != "filelock"]  # Gradio brings that along
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({absent})); sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", f"{code}runpy.run_path({server!r}, run_name='__main__')"]
    command += [server, str(tmp_path / "go"), *map(str, denoisers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.communicate(timeout=300)
        assert process.returncode == 0


def test_what_needs_keras_says_so_where_there_is_none(tmp_path):
    Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / "a.png")
    for arguments in (["denoise", "a.png", "-o", "b.png", "--engine", "keras"], ["certify", "denoise-gray"], ["demo"]):
        result = without_keras(*arguments, cwd=tmp_path)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert "needs the module 'keras', which is not installed. Without it, only models exported" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_tiles_of_artifacts_give_what_the_whole_image_gives(denoisers):
    pixels = image(203, 171, 1)
    for path in denoisers:
        engine, seen = load_engine(path), []

        def counted(crop: np.ndarray, function=engine.function, seen=seen) -> np.ndarray:
            seen.append(max(crop.shape))
            return function(crop)

        tiled = denoise_pixels(pixels, dataclasses.replace(engine, function=counted), tile=96)
        assert len(seen) > 4 and max(seen) <= 96
        assert np.abs(tiled - denoise_pixels(pixels, engine, tile=1000)).max() <= 1e-6 * np.ptp(pixels)


def test_image_of_another_size_than_the_artifact_takes_is_refused():
    engine = Engine(lambda x: x, 1, "fixed.xml", Path("fixed.xml"), size=(40, 56))
    assert denoise_pixels(image(40, 56, 1), engine, tile=32).shape == (40, 56, 1)
    with pytest.raises(ArgumentError, match="`pixels` must be of 40x56 pixels for fixed.xml"):
        denoise_pixels(image(56, 40, 1), engine)


def test_artifact_of_classes_is_not_evaluated_as_if_of_probabilities(tmp_path, capfd):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"never opened")
    write_card(path, {"export": {"activation": "argmax"}, "classes": [{"name": "a", "mask_value": 0}] * 3,
                      "ignored_mask_values": [], "every_other_value_is_foreground": False})  # fmt: skip
    from dl_techniques.inference.evaluation import evaluate_files

    engine = Engine(lambda x: x, 1, "a.onnx", path)
    with pytest.raises(FileError, match="a.onnx: returns classes, no probabilities"):
        evaluate_files(engine, read_card(path), "images", None, tmp_path / "out", QUIET)


REST = {"multiple": 4, "bytes_per_pixel": 1, "outputs": 1}
WRONG = [{"halo": -1, **REST}, {"halo": 3}, {"halo": "3", **REST}, {"halo": 0.5, **REST}, [1, 2], 0.5]


@pytest.mark.parametrize("tiling", WRONG)
def test_card_with_impossible_tiling_is_refused(tiling, denoisers):
    card = read_card(denoisers[1]).as_dict()
    write_card(denoisers[1], {**card, "export": {**card["export"], "tiling": tiling}})
    try:
        with pytest.raises(FileError, match="a.xml: has a card whose tiling is"):
            load_engine(denoisers[1])
    finally:
        write_card(denoisers[1], card)


def test_documented_packages_are_those_that_the_runtime_imports():
    document = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^runtime/bin/pip install -c constraints.txt (.*?) *(?:#.*)?$", document, flags=re.M)
    assert set(line.split()) == PROVIDED - {"onnxruntime"}
    project = re.search(r"^dependencies = (\[.*?^\])", (ROOT / "pyproject.toml").read_text(), flags=re.M | re.S)
    needed = {re.split("[>=]", name)[0].replace("-", "_") for name in ast.literal_eval(re.sub("#.*", "", project[1]))}
    assert needed - PROVIDED == needed & set(TRAINS)
