"""Half precision stays finite at any intensity and close to float32."""

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.models.convunext.model import ConvUNextModel
from models import image, randomize, relative_difference, run, small_model

pytestmark = pytest.mark.each_backend

DESIGNS = [
    {"use_bias": use_bias, "convnext_version": version} for use_bias in (True, False) for version in ("v1", "v2")
]
IDS = [f"{'biased' if d['use_bias'] else 'bias-free'}-{d['convnext_version']}" for d in DESIGNS]

IMAGES = {
    "unit": image(1, 64, 64, 3),
    "16 bit": np.round(image(1, 64, 64, 3) * 65535),
    "16 bit, saturated": np.full((1, 64, 64, 3), 65535.0, "float32"),
    "constant": np.full((1, 64, 64, 3), 0.3, "float32"),
    "black": np.zeros((1, 64, 64, 3), "float32"),
    "one bright pixel": np.pad(np.full((1, 1, 1, 3), 60000.0, "float32"), ((0, 0), (31, 32), (31, 32), (0, 0))),
}


def pair(policy: str, **design) -> tuple[ConvUNextModel, ConvUNextModel]:
    """Return a float32 model and the same in half precision."""
    full = small_model(**design)
    randomize(full)
    half = ConvUNextModel.from_config({**full.get_config(), "dtype": policy})
    half.set_weights(full.get_weights())
    return full, half


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("design", DESIGNS, ids=IDS)
def test_half_precision_is_finite_and_returns_float32(design, policy):
    _, half = pair(policy, **design)
    for name, x in IMAGES.items():
        (output,) = run(half, x)
        assert output.dtype == "float32"
        assert np.isfinite(output).all(), name


@pytest.mark.parametrize("design", DESIGNS, ids=IDS)
def test_float16_is_within_two_percent_of_float32(design):
    full, half = pair("mixed_float16", **design)
    for size in (64, 256):
        x = image(1, size, size, 3)
        assert relative_difference(run(half, x)[0], run(full, x)[0]) <= 0.02


def test_float16_bias_free_model_works_in_any_unit():
    _, half = pair("mixed_float16", use_bias=False)
    x = image(1, 33, 47, 3)
    (expected,) = run(half, x)
    for alpha in (1e-6, 0.37, 65535.0, 1e9):
        assert relative_difference(run(half, np.float32(alpha) * x)[0], alpha * expected.astype("float64")) <= 0.01


@pytest.mark.parametrize("design", DESIGNS, ids=IDS)
def test_loss_and_gradients_of_half_precision_training_are_finite(design):
    model = small_model(depth=2, dtype="mixed_bfloat16", **design)
    eager = keras.backend.backend() == "tensorflow"
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", run_eagerly=eager)
    history = model.fit(image(2, 16, 16, 3), image(2, 16, 16, 3, seed=1), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(ops.convert_to_numpy(weight)).all() for weight in model.weights)
