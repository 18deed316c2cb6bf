"""Models survive files, backends and their own configuration; weights of another model are refused."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.models.convunext.model import ConvUNextModel
from models import image, randomize, relative_difference, run, small_model

pytestmark = pytest.mark.each_backend

BACKENDS = ("tensorflow", "jax", "torch")
DESIGNS = {
    "biased-v1": {"use_bias": True, "convnext_version": "v1"},
    "biased-v2": {"use_bias": True, "convnext_version": "v2", "enable_deep_supervision": True},
    "bias-free-v1": {"use_bias": False, "convnext_version": "v1", "downsample": "conv"},
    "bias-free-v2": {"use_bias": False, "convnext_version": "v2"},
    "no-norm": {"use_bias": False, "equivariant_block": "no_norm", "drop_path_rate": 0.2, "seed": 3},
    "batchnorm": {"use_bias": False, "equivariant_block": "batchnorm", "output_channels": 1},
}

# Loads every model of a folder, in a process of its own, and saves what it returns and a copy of its file.
OTHER_PROCESS = """
import sys, pathlib, keras, numpy as np
import dl_techniques.models.convunext.model
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "x.npy")
for path in sorted(folder.glob("*.keras")):
    model = keras.saving.load_model(path, safe_mode=True)
    outputs = model(x, training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    arrays = [keras.ops.convert_to_numpy(output) for output in outputs]
    np.savez(folder / f"{path.stem}.{keras.backend.backend()}.npz", *arrays)
    model.save_weights(folder / f"{path.stem}.{keras.backend.backend()}.weights.h5")
"""


@pytest.mark.parametrize("design", list(DESIGNS))
def test_config_round_trip_is_exact(design):
    model = small_model(**DESIGNS[design])
    config = model.get_config()
    kept = json.loads(json.dumps(config))
    clone = ConvUNextModel.from_config(config)
    assert json.loads(json.dumps(config)) == kept  # from_config did not edit it
    assert clone.get_config() == config
    assert [w.path for w in clone.weights] == [w.path for w in model.weights]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("design", list(DESIGNS))
def test_files_give_the_same_model_bit_for_bit(design, policy, tmp_path):
    model = small_model(dtype=policy, **DESIGNS[design])
    randomize(model)
    x = image(1, 33, 47, 3)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    rebuilt = ConvUNextModel.from_config(model.get_config())
    rebuilt.load_weights(tmp_path / "model.weights.h5")
    assert type(loaded) is ConvUNextModel and loaded.dtype_policy.name == policy
    for other in (loaded, rebuilt):
        for expected, actual in zip(run(model, x), run(other, x), strict=True):
            assert np.array_equal(expected, actual)


def test_compiled_model_loads_and_continues_training(tmp_path):
    model = small_model(depth=2)
    eager = keras.backend.backend() == "tensorflow"
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", run_eagerly=eager)
    x, y = image(2, 16, 16, 3), image(2, 16, 16, 3, seed=1)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    loaded.run_eagerly = eager  # which the file does not tell
    assert int(ops.convert_to_numpy(loaded.optimizer.iterations)) == 1
    losses = [m.fit(x, y, epochs=2, verbose=0).history["loss"] for m in (model, loaded)]
    assert np.allclose(*losses, rtol=1e-5)


@pytest.fixture(scope="module")
def other_backends(tmp_path_factory):
    """Save one model of each design here, load and run them on the other two backends."""
    folder = tmp_path_factory.mktemp("models")
    x = image(2, 33, 47, 3)
    np.save(folder / "x.npy", x)
    models = {}
    for name, design in DESIGNS.items():
        models[name] = small_model(**design)
        randomize(models[name])
        models[name].save(folder / f"{name}.keras")
    others = [backend for backend in BACKENDS if backend != keras.backend.backend()]
    for backend in others:
        environment = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, str(folder)]
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return folder, x, models, others


@pytest.mark.parametrize("design", list(DESIGNS))
def test_same_weights_give_the_same_output_on_every_backend(design, other_backends):
    folder, x, models, others = other_backends
    expected = run(models[design], x)
    for backend in others:
        with np.load(folder / f"{design}.{backend}.npz") as arrays:
            actual = list(arrays.values())
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert relative_difference(a, b) <= 1e-5, backend


@pytest.mark.parametrize("design", list(DESIGNS))
def test_weights_saved_on_another_backend_load_here(design, other_backends):
    folder, x, models, others = other_backends
    for backend in others:
        model = small_model(**DESIGNS[design])
        model.load_weights(folder / f"{design}.{backend}.weights.h5")
        for actual, expected in zip(run(model, x), run(models[design], x), strict=True):
            assert np.array_equal(actual, expected)


@pytest.mark.parametrize(
    "other",
    [
        {"initial_filters": 16},
        {"depth": 2},
        {"depth": 4},
        {"blocks_per_level": 2},
        {"convnext_version": "v1"},
        {"use_bias": False},
        {"output_channels": 1},
        {"enable_deep_supervision": True},
    ],
    ids=lambda other: next(iter(other)) + str(next(iter(other.values()))),
)
def test_weights_of_another_architecture_are_refused_and_nothing_is_lost(other, tmp_path):
    path = tmp_path / "other.weights.h5"
    small_model(**other).save_weights(path)
    model = small_model()
    randomize(model)
    before = [ops.convert_to_numpy(weight).copy() for weight in model.weights]
    with pytest.raises(ValueError) as error:
        model.load_weights(path)
    assert str(path) in str(error.value) and "first mismatch" in str(error.value)
    for weight, old in zip(model.weights, before, strict=True):
        assert np.array_equal(ops.convert_to_numpy(weight), old)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated"])
def test_broken_weight_files_are_refused_by_name(damage, tmp_path):
    model, path = small_model(), tmp_path / "broken.weights.h5"
    model.save_weights(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"<html></html>", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises((ValueError, OSError)) as error:
        model.load_weights(path)
    assert "broken.weights.h5" in str(error.value)


def test_config_of_a_hostile_file_is_refused_before_anything_is_allocated():
    config = small_model().get_config()
    for bomb in ({"initial_filters": 2**31}, {"depth": 10**6}, {"output_channels": 2**40}, {"stem_kernel_size": 10**9}):
        with pytest.raises(ValueError, match="must be at most|that are allowed"):
            ConvUNextModel.from_config({**config, **bomb})
