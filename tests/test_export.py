"""Every artifact gives the numbers of Keras in its own runtime, says so in its card, or is not there."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from dl_techniques.atomic import publish
from dl_techniques.card import read_card, write_card
from dl_techniques.cli import main
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.engine import Tiling
from dl_techniques.engines.footprint import model_bytes_per_pixel
from dl_techniques.engines.formats import FORMATS
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, ExportError, FileError
from dl_techniques.export import export
from dl_techniques.export.certify import certify
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from dl_techniques.models.convunext.receptive import receptive_radius
from dl_techniques.models.convunext.tiles import sum_sizes
from models import image, randomize, run, saved, small_model

# Exporting in a TensorFlow process is the dependable road, whatever backend trained: this module has tests there alone.
pytestmark = pytest.mark.only_backend("tensorflow")

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "saved_model": "", "litert": ".tflite"}
FIXED = (40, 56)
QUIET = Console(quiet=True)


def softmax(y: np.ndarray) -> np.ndarray:
    return np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[tuple[str, bool], Path]:
    """Models by version and whether they have biases."""
    cards = {
        True: {"task": "segment", "normalization": "standardize", "certificate": {"of": "the model"}},
        False: {"task": "denoise"},
    }
    return {
        (version, bias): saved(tmp_path_factory.mktemp("source"), cards[bias], convnext_version=version, use_bias=bias)
        for version in ("v1", "v2")
        for bias in (True, False)
    }


@functools.cache
def reference(source: Path) -> keras.Model:
    return keras.saving.load_model(source)


# Half of all combinations: of each format, every pair of version, bias and size, and each activation. What one format
# lacks of the three together, two others have: a graph is made of a model before a format writes it.
CASES = [
    pytest.param((form, version, bias, fixed), id=f"{form}-{version}-{'bias' if bias else 'free'}-{fixed or 'any'}")
    for number, form in enumerate(SUFFIXES)
    for version in ("v1", "v2")
    for bias in (True, False)
    for fixed in (None, FIXED)
    if ((version == "v1") + bias + bool(fixed) + number) % 2
]


@pytest.mark.parametrize("case", CASES)
def test_artifact_matches_keras_at_every_size(case, sources, tmp_path):
    form, version, bias, fixed = case
    activation = ("argmax" if fixed else "softmax") if bias else "none"
    source, path = sources[version, bias], tmp_path / f"model{SUFFIXES[form]}"
    options = ExportOptions(output=path, size=fixed, activation=activation)
    artifact = export_model(source, options, QUIET)

    model, exported = reference(source), load_engine(path)
    for batch, size in (3, (17, 90)), (1, (1, 5)):
        pixels = image(batch, *(fixed or size), 3)
        pixels = 200 * pixels + 7 if bias else pixels
        normalized = np.stack([standardize(x) for x in pixels]) if bias else pixels
        expected = run(model, normalized)[0].astype("float64")
        actual = exported.function(pixels)
        if activation == "argmax":
            classes = expected.argmax(axis=-1)
            assert actual.dtype == np.int32 and np.mean(actual[..., 0] == classes) >= 0.9999
            assert len(np.unique(classes)) > 1
            continue
        expected = softmax(expected) if activation == "softmax" else expected
        assert actual.shape == expected.shape and actual.dtype == np.float32
        assert np.abs(actual - expected).max() <= 1e-4 * np.ptp(expected)
    if fixed:
        with pytest.raises(Exception, match=r"(?i)shape|dimension|incompatible|expected"):
            exported.function(image(1, 33, 47, 3))

    card = read_card(path).as_dict()
    assert card["task"] == ("segment" if bias else "denoise") and card["normalization"] == "none"
    against = card["export"]["against_keras"]
    assert against["value"] == artifact.comparison.value <= against["limit"] == 1e-4
    assert card["export"]["normalization"] == ("standardize" if bias else "none")
    assert card["export"]["activation"] == activation
    whole = version == "v2" or bias or fixed is not None  # they pool over the whole image, or are of one size
    outputs = 1 if activation == "argmax" else model.output_channels
    energies = tuple(sum_sizes(model)) if version == "v2" else ()
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}.get(form, "keras")
    memory = model_bytes_per_pixel(model, runtime)
    tiling = Tiling(receptive_radius(model), 4, memory, outputs, whole, energies)
    assert load_engine(path).tiling == tiling
    assert card["export"]["format"] == form and card["export"]["size"] == (list(fixed) if fixed else "any")
    if bias:
        assert artifact.certificate is None and "certificate" not in card
    else:
        assert card["certificate"]["holds"] and card["certificate"]["alphas"] == [0.013, 0.37, 1.7, 73.0]
        assert certify(exported).holds  # other factors, and the limit of models
        expected = exported.function(pixels).astype("float64")
        difference = np.abs(exported.function(np.float32(0.37) * pixels) - 0.37 * expected).max()
        assert difference <= 1e-4 * 0.37 * np.abs(expected).max()
    assert {file.name for file in tmp_path.iterdir()} == {
        path.name,
        *({"model.bin"} if form == "openvino" else ()),
        *({f"{path.name}.card.json"} if form != "saved_model" else ()),
    }


def test_only_the_finest_output_of_a_training_model_is_exported(tmp_path):
    training = {"enable_deep_supervision": True, "drop_path_rate": 0.5, "remat": True, "dtype": "mixed_bfloat16"}
    source = saved(tmp_path, {}, input_shape=(64, 64, 3), final_activation="sigmoid", **training)
    export_model(source, ExportOptions(output=tmp_path / "model"), QUIET)
    model = keras.saving.load_model(source)
    config = {**model.get_config(), "dtype": "float32", "input_shape": (None, None, 3)}
    reference = type(model).from_config(config)
    reference.set_weights(model.get_weights())
    x = image(2, 33, 47, 3)
    assert np.abs(load_engine(tmp_path / "model").function(x) - run(reference, x)[0]).max() <= 1e-6


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # Keras mends tf2onnx under NumPy 2
def test_all_outputs_of_a_model_are_exported_by_keras(tmp_path):
    import onnxruntime

    model = small_model(depth=2, initial_filters=4, enable_deep_supervision=True)
    randomize(model)
    x = image(2, 33, 47, 3)
    expected = run(model, x)
    model.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for actual, output in zip(session.run(None, {"image": x}), expected, strict=True):  # finest first
        assert np.abs(actual - output).max() <= 1e-4 * np.ptp(output)


# === What is not exported ===


def test_artifact_that_differs_is_not_left(sources, tmp_path, monkeypatch, capfd):
    (tmp_path / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr(export, "LIMIT", 0.0)
    command = ["export", str(sources["v1", True]), "-o", str(tmp_path / "model.onnx"), "--overwrite"]
    assert main(command) == 1
    assert "model.onnx: does not match Keras: largest difference" in capfd.readouterr().err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_artifact_that_breaks_the_promise_is_not_left(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ALPHAS", (1e25,))  # whose square is beyond float32
    with pytest.raises(ExportError, match=r"model: is not scale-equivariant, as its model is: f\(a\*x\) = a\*f\(x\)"):
        export_model(sources["v1", False], ExportOptions(output=tmp_path / "model"), QUIET)
    assert not list(tmp_path.iterdir())


def test_artifact_that_does_not_run_is_not_left(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "export", lambda model, path, **_: Path(path).write_bytes(b"nothing of the kind"))
    with pytest.raises(ExportError, match="model.onnx: does not run: cannot be loaded"):
        export_model(sources["v1", True], ExportOptions(output=tmp_path / "model.onnx"), QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["model.pb", "model.keras", "model.ONNX"])
def test_unknown_suffix_is_refused(output):
    with pytest.raises(ArgumentError, match=r"`output` must end in .onnx \(ONNX\), .xml \(OpenVINO\), .tflite"):
        ExportOptions(output=Path(output))


@pytest.mark.parametrize(
    "output, form, rule",
    [
        ("model.onnx", "openvino", "must end in .xml for --format openvino"),
        ("model", "onnx", "must end in .onnx for --format onnx"),
        ("model.xml", "saved_model", "must have no suffix for --format saved_model"),
    ],
)
def test_suffix_that_contradicts_the_format_is_refused(output, form, rule):
    with pytest.raises(ArgumentError, match=rule):
        ExportOptions(output=Path(output), format=form)


def test_format_is_that_of_the_suffix():
    assert {
        form: ExportOptions(output=Path(f"a{suffix}")).artifact_format.name for form, suffix in SUFFIXES.items()
    } == {form: form for form in SUFFIXES}
    assert ExportOptions(output=Path("denoiser-1.2"), format="saved_model").artifact_format.name == "saved_model"


@pytest.mark.parametrize(
    "existing, output, options, reason",
    [
        ("model.onnx", "model.onnx", [], "model.onnx: exists already. Choose another --output, or add --overwrite."),
        ("model.bin", "model.xml", [], "model.bin: exists already."),
        ("model.tflite.card.json", "model.tflite", [], "model.tflite.card.json: exists already."),
        ("photos/a.png", "photos", ["--overwrite"], "photos: is not a SavedModel. Choose another --output."),
        ("model.onnx/a.png", "model.onnx", ["--overwrite"], "model.onnx: is a folder."),
        ("file", "file/model.onnx", [], "file/model.onnx: cannot be written"),
    ],
)
def test_existing_output_is_refused(existing, output, options, reason, sources, tmp_path, capfd):
    (tmp_path / existing).parent.mkdir(exist_ok=True)
    (tmp_path / existing).write_bytes(b"mine")
    assert main(["export", str(sources["v1", True]), "-o", str(tmp_path / output), *options]) == 2
    assert reason in capfd.readouterr().err
    assert (tmp_path / existing).read_bytes() == b"mine"


def test_what_the_model_cannot_be_is_refused(sources, tmp_path, monkeypatch):
    def refusal(source, **options) -> str:
        with pytest.raises(ConvUNextError) as refused:
            export_model(source, ExportOptions(output=tmp_path / "out", **options), QUIET)
        return str(refused.value)

    sigmoid = saved(tmp_path, {}, output_channels=1, final_activation="sigmoid")
    assert "must be none or argmax: the model ends in sigmoid" in refusal(sigmoid, activation="sigmoid")
    assert "must be none or sigmoid for a model of one output channel" in refusal(sigmoid, activation="argmax")
    write_card(sigmoid, {"normalization": "by magic"})
    assert "model.keras: has a card whose normalization is 'by magic', which this version does" in refusal(sigmoid)
    assert "must be a file (.keras, .onnx, .xml, .tflite)" in refusal(tmp_path / "nothing")
    (tmp_path / "made").mkdir()
    artifact = export_model(sources["v1", True], ExportOptions(output=tmp_path / "made" / "model"), QUIET)
    assert "model: is an export already. Name the .keras file or preset" in refusal(artifact.path)
    saved_model = dataclasses.replace(FORMATS["saved_model"], max_bytes=1000)
    monkeypatch.setitem(FORMATS, "saved_model", saved_model)
    assert "must be one that holds 2 GB and more" in refusal(sources["v1", True])
    monkeypatch.setitem(FORMATS, "saved_model", dataclasses.replace(saved_model, modules=("no_such_module",)))
    assert "needs the module 'no_such_module', which is not installed" in refusal(sources["v1", True])
    with pytest.raises(ArgumentError, match="`size` must be a height and a width of at least 1"):
        ExportOptions(output=tmp_path / "out", size=(0, 5))


@pytest.mark.parametrize("name", ["broken.onnx", "broken.xml", "broken.tflite"])
def test_broken_exports_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=name):
        load_engine(tmp_path / name)


# === How it is put in place ===


class Crash(BaseException):
    """The machine stops: nobody tidies up."""


@pytest.mark.parametrize("output", ["model.onnx", "model.xml", "model"])
@pytest.mark.parametrize("error", [Crash, OSError(28, "No space left on device")])
def test_crash_leaves_the_old_artifact_or_the_new_or_none(output, error, tmp_path, monkeypatch):
    for point in range(8):
        folder = tmp_path / str(point)
        options = ExportOptions(output=folder / output, overwrite=True)
        staging = folder / "staging"
        staging.mkdir(parents=True)
        for parent, content in (folder, "old"), (staging, "new"):
            for part in export._parts(options):
                if output == "model":
                    (parent / part.name).mkdir()
                    (parent / part.name / "saved_model.pb").write_text(content)
                else:
                    (parent / part.name).write_text(content)

        left, rename = point, os.rename

        def failing(*arguments, rename=rename):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            rename(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing)
            try:
                publish(staging, export._parts(options))
            except (Crash, FileError):
                pass
            else:
                break
        if options.output.exists():
            files = [part / "saved_model.pb" if part.is_dir() else part for part in export._parts(options)]
            assert {file.read_text() for file in files} == {"old"}, point
        else:
            assert error is Crash, "what could be put back was lost"
    assert point == 2 * len(export._parts(options)) and options.output.exists()


def test_command_exports_whatever_backend_is_set_and_replaces_when_told(sources, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"old")
    command = [sys.executable, "-m", "dl_techniques.cli", "export", str(sources["v2", False]), "-o", "model"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run([*command, "--overwrite"], **options)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert lines[0].startswith("model against Keras on images of 1x1, 33x47, 128x160: largest difference by range")
    assert "scale-equivariance holds" in lines[-2] and lines[-1] == str((tmp_path / "model").resolve())
    assert load_engine(tmp_path / "model").function(image(1, 9, 9, 3)).shape == (1, 9, 9, 3)
    assert json.loads((tmp_path / "model" / "card.json").read_text())["certificate"]["holds"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
