"""Artifacts of 8-bit integers: what they cost is measured, said, and bounded."""

from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.metrics import Confusion
from dl_techniques.tasks.segmentation.classes import Classes
from models import DENOISER, denoise_pixels, image, run, saved

# Exports are made on TensorFlow.
pytestmark = pytest.mark.only_backend("tensorflow")

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Four pictures of soft shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        coarse = image(5, 6, 3, seed=seed)
        soft = np.kron(coarse, np.ones((12, 12, 1)))
        write_image(folder / f"{seed}.png", Picture(np.uint8(255 * soft)))
    return folder


def test_integers_cost_what_is_said_and_work_in_every_unit(pictures, tmp_path):
    source = saved(tmp_path, {"task": "denoise"}, input_shape=(None, None, 1), **DENOISER)
    command = ["export", str(source), "--int8", str(pictures), "-o"]
    assert main([*command, str(tmp_path / "a.onnx"), "--max-loss=-99"]) == 1
    assert not list(tmp_path.glob("a.onnx*"))
    assert main([*command, str(tmp_path / "a.onnx"), "--max-loss=99"]) == 0
    card = read_card(tmp_path / "a.onnx").as_dict()
    stated = card["export"]["int8"]
    assert "certificate" not in card and stated["calibrated"] == stated["measured"] == 2 and stated["limit"] == 99
    integers, float32 = load_engine(tmp_path / "a.onnx"), load_engine(source)
    assert integers.largest == stated["largest"] and 200 < integers.largest < 256

    losses = []
    for number in (1, 3):
        pixels = read_image(pictures / f"{number}.png").pixels[..., [number % 3]].astype("float32")
        noise = np.random.default_rng(number).standard_normal(pixels.shape, "float32")
        noisy = pixels + np.float32(25 / 255 * pixels.max()) * noise
        outputs = [denoise_pixels(noisy, engine) for engine in (float32, integers)]
        squares = [np.mean(np.square(y - pixels)) for y in outputs]
        losses.append(10 * np.log10(squares[1] / squares[0]))
        brighter = denoise_pixels(257 * noisy, integers)  # far beyond what 8 bits were calibrated for
        assert np.abs(brighter / 257 - outputs[1]).max() <= 0.1 * np.ptp(outputs[1])
    assert stated["value"] == pytest.approx(np.mean(losses), abs=0.05)


def test_integers_of_a_segmenter_are_measured_on_its_masks(pictures, tmp_path):
    card = {"task": "segment", "normalization": "standardize", **Classes((0, 1, 2), ("a", "b", "c")).as_card()}
    source = saved(tmp_path, card, output_channels=3, final_activation="softmax")
    options = ExportOptions(output=tmp_path / "s.onnx", int8=pictures, max_loss=1.0)
    loss = export_model(source, options, QUIET).loss
    float32, integers = keras.saving.load_model(source), load_engine(tmp_path / "s.onnx")
    confusion = Confusion(3)
    for number in (1, 3):
        pixels = read_image(pictures / f"{number}.png").pixels
        expected = run(float32, standardize(pixels)[None])[0].argmax(-1)
        actual = integers.function(pixels[None].astype("float32")).argmax(-1)
        confusion.update(actual, expected, np.ones(expected.shape, bool))
    assert loss.value == pytest.approx(1 - confusion.mean_dice, abs=1e-3) and 0 < loss.value < 0.5


def test_integers_are_refused_without_what_they_need(pictures, tmp_path, capfd):
    def refusal(source: Path, *flags: str) -> str:
        assert main(["export", str(source), "-o", str(tmp_path / "out.onnx"), *flags]) == 2
        assert not list(tmp_path.glob("out*"))
        return capfd.readouterr().err

    assert "has no card with a task" in refusal(saved(tmp_path, {}), "--int8", str(pictures))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((pictures / "0.png").read_bytes())
    assert "one: holds fewer than two images" in refusal(
        saved(tmp_path, {"task": "denoise"}), "--int8", str(tmp_path / "one")
    )
    with pytest.raises(ArgumentError, match=r"`int8` needs an --output that ends in .onnx"):
        ExportOptions(output=tmp_path / "a.xml", int8=pictures)
    with pytest.raises(ArgumentError, match="`max_loss` needs --int8"):
        ExportOptions(output=tmp_path / "a.onnx", max_loss=1.0)
