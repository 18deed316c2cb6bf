"""Certificates of scale-equivariance, and the cards they are written into."""

import keras
import numpy as np
import pytest

from dl_techniques.card import ModelCard, read_card, write_card
from dl_techniques.cli import main
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import FileError
from dl_techniques.export.certify import certify
from models import DENOISER, image, randomize, run, small_model


def test_certificate_holds_without_bias_and_fails_with(preset, tmp_path, capfd):
    assert main(["certify", str(preset)]) == 0
    assert "scale-equivariance holds" in capfd.readouterr().out
    card = read_card(preset).as_dict()
    assert card["task"] == "denoise" and card["certificate"]["holds"] and card["certificate"]["largest_error"] <= 1e-5

    model = small_model(input_shape=(None, None, 1))
    randomize(model)
    model.save(tmp_path / "biased.keras")
    assert main(["certify", str(tmp_path / "biased.keras")]) == 1
    assert "BROKEN" in capfd.readouterr().out
    assert not read_card(tmp_path / "biased.keras").as_dict()["certificate"]["holds"]
    loaded = keras.saving.load_model(tmp_path / "biased.keras", safe_mode=True)  # the card inside does no harm
    x = image(1, 9, 9, 1)
    assert np.array_equal(run(loaded, x)[0], run(model, x)[0])


def test_certificate_sees_what_is_not_finite():
    broken = Engine(lambda x: x * np.nan, 1, "broken", None)
    assert not certify(broken).holds


def test_model_of_a_fixed_size_is_certified_at_it(tmp_path):
    model = small_model(input_shape=(20, None, 1), **DENOISER)
    randomize(model)
    model.save(tmp_path / "fixed.keras")
    certificate = certify(load_engine(tmp_path / "fixed.keras"), alphas=(0.37,), sizes=((1, 9), (33, 9), (64, 32)))
    assert certificate.holds and certificate.sizes == ((20, 9), (20, 32))


def test_broken_model_is_refused_by_name(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="broken.keras"):
        load_engine(tmp_path / "broken.keras")


def test_broken_card_is_named(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    assert read_card(model) == ModelCard()
    write_card(model, {"a": 1})
    assert read_card(model).details == {"a": 1}
    (tmp_path / "model.onnx.card.json").write_text("{")
    with pytest.raises(FileError, match="model.onnx.card.json: cannot be read"):
        read_card(model)
