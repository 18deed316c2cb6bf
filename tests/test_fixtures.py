"""What version 0.1 wrote still loads and gives what it gave: models, presets, exports; its runs are refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dl_techniques.cli import main
from dl_techniques.engines.engine import Tiling
from dl_techniques.engines.loading import load_engine
from dl_techniques.inference.predictor import Predictor

FIXTURES = Path(__file__).parent / "fixtures" / "version_0_1"
EXPECTED = dict(np.load(FIXTURES / "expected.npz"))
MODELS = sorted(name for name in EXPECTED if "#" not in name and name != "image")
INT8 = "exports/denoise-int8.onnx"  # processors may round another way: one step of 8 bits


def test_every_model_of_version_0_1_is_tested():
    exports = [path for path in (FIXTURES / "exports").iterdir() if path.suffix not in (".json", ".bin")]
    files = [*FIXTURES.rglob("*.keras"), FIXTURES / "preset", *exports]
    assert MODELS == sorted(path.relative_to(FIXTURES).as_posix() for path in files)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_version_0_1_give_the_same(name):
    expected = EXPECTED[name]
    found = load_engine(FIXTURES / name).function(EXPECTED["image"])
    assert np.abs(found - expected).max() <= (1 / 255 if name == INT8 else 1e-6) * np.ptp(expected)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_of_version_0_1_are_the_same(name):
    pixels = np.rint(255 * EXPECTED["image"][0]).astype("uint8")
    prediction = Predictor(FIXTURES / name, max_memory="2GB")(pixels)
    difference = np.abs(prediction.pixels.astype(int) - EXPECTED[f"{name}#predicted"])
    assert difference.max() <= (name == INT8)
    if f"{name}#probabilities" in EXPECTED:
        assert np.abs(prediction.probabilities - EXPECTED[f"{name}#probabilities"]).max() <= 1e-6
    else:
        assert prediction.probabilities is None


def test_tiling_of_cards_of_version_0_1_is_read():
    card = json.loads((FIXTURES / "exports" / "segment-tiles.onnx.card.json").read_text())
    assert Tiling.from_dict(card["export"]["tiling"]) == Tiling(42, 4, 384, 1, False, (16, 32, 64, 32, 16))
    assert load_engine(FIXTURES / "exports" / "segment-tiles.onnx").tile_function is not None


def test_a_run_of_version_0_1_is_refused_with_what_to_do(tmp_path, capfd):
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("convunext: ") and line.endswith(".")
