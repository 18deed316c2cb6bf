"""Every export gives the numbers of Keras in its own runtime, at sizes unknown when written, and scales alike."""

from collections.abc import Callable

import keras
import numpy as np
import pytest

from dl_techniques.card import read_card
from dl_techniques.certify import certify, save_certificate
from dl_techniques.errors import FileError
from dl_techniques.inference.engines import load_engine
from dl_techniques.models.convunext.model import ConvUNextModel
from models import image, randomize, relative_difference, run, small_model

# Exporting in a TensorFlow process is the dependable road, whatever backend trained: this module has tests there alone.
__test__ = keras.backend.backend() == "tensorflow"

SIZES = ((64, 64), (33, 47), (1, 1))
ALPHAS = (0.37, 73.0)  # no powers of two: floats scale by those exactly
TOLERANCE = 1e-4  # of the range of the output


def open_saved_model(path: str) -> Callable:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda x: [output.numpy() for output in keras.tree.flatten(loaded.serve(x))]


def open_onnx(path: str) -> Callable:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})


def open_openvino(path: str) -> Callable:
    import openvino

    # Left alone, OpenVINO works in bfloat16 on a CPU that has it.
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: list(compiled(x).values())


def open_litert(path: str) -> Callable:
    import tensorflow as tf

    forward = tf.lite.Interpreter(path).get_signature_runner()  # fits its tensors to the size of each input
    return lambda x: [output for _, output in sorted(forward(image=x).items())]


FORMATS = {  # name in Keras: ending of the file, and what opens it in its runtime
    "tf_saved_model": ("", open_saved_model),
    "onnx": (".onnx", open_onnx),
    "openvino": (".xml", open_openvino),
    "litert": (".tflite", open_litert),
}
# Warnings of Keras, which mends tf2onnx under NumPy 2, and of TensorFlow about its own LiteRT interpreter.
QUIET = {
    "onnx": pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning"),
    "litert": pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"),
}


def export(model: ConvUNextModel, form: str, folder) -> Callable:
    """Return a function that runs the exported model in the runtime of the format, on NumPy arrays."""
    ending, open_in_runtime = FORMATS[form]
    path = str(folder / f"model{ending}")
    model.export(path, format=form, verbose=False)
    return open_in_runtime(path)


def called_model(**kwargs) -> ConvUNextModel:
    """Return a small model of random weights that has been called, as its export asks."""
    keras.utils.set_random_seed(7)
    model = small_model(**kwargs)
    randomize(model)
    run(model, image(1, 8, 8, 3))
    return model


def range_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return max |actual − expected| as a share of the range of `expected`."""
    assert actual.shape == expected.shape
    expected = expected.astype("float64")
    return float(np.abs(actual - expected).max() / np.ptp(expected))


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory) -> tuple[ConvUNextModel, Callable]:
    form, version, use_bias = request.param
    model = called_model(convnext_version=version, use_bias=use_bias)
    return model, export(model, form, tmp_path_factory.mktemp(form))


def of_every_format(use_bias: tuple[bool, ...]):
    cases = [
        pytest.param(
            (form, version, bias), marks=QUIET.get(form, ()), id=f"{form}-{version}-{'bias' if bias else 'free'}"
        )
        for form in FORMATS
        for version in ("v1", "v2")
        for bias in use_bias
    ]
    return pytest.mark.parametrize("exported", cases, indirect=True)


@of_every_format(use_bias=(True, False))
def test_export_matches_keras(exported):
    model, forward = exported
    for height, width in SIZES:
        x = image(2, height, width, 3)
        (actual,), (expected,) = forward(x), run(model, x)
        assert range_difference(actual, expected) <= TOLERANCE, (height, width)


@of_every_format(use_bias=(False,))
def test_bias_free_export_scales_with_input(exported):
    _, forward = exported
    for height, width in SIZES:
        x = image(1, height, width, 3)
        (expected,) = forward(x)
        for alpha in ALPHAS:
            (actual,) = forward(np.float32(alpha) * x)
            assert range_difference(actual, alpha * expected.astype("float64")) <= TOLERANCE, (height, width, alpha)
        assert np.all(forward(0.0 * x)[0] == 0.0)  # alpha = 0: a black image stays black


@QUIET["onnx"]
def test_deeply_supervised_onnx_matches_keras(tmp_path):
    model = called_model(enable_deep_supervision=True, output_channels=2)
    forward = export(model, "onnx", tmp_path)
    for height, width in SIZES:
        x = image(2, height, width, 3)
        for actual, expected in zip(forward(x), run(model, x), strict=True):  # finest first
            assert range_difference(actual, expected) <= TOLERANCE, (height, width)


@pytest.mark.parametrize(
    "form, suffix",
    [
        pytest.param("onnx", ".onnx", marks=QUIET["onnx"]),
        ("openvino", ".xml"),
        ("litert", ".tflite"),
        ("tf_saved_model", ""),
    ],
)
def test_exported_models_are_loaded_and_certified(form, suffix, tmp_path):
    model = small_model(input_shape=(None, None, 1), convnext_version="v1", use_bias=False, residual_learning=True)
    randomize(model)
    x = image(2, 21, 30, 1)
    (expected,) = run(model, x)
    path = tmp_path / f"model{suffix}"
    model.export(str(path), format=form, verbose=False)
    exported = load_engine(path)
    assert relative_difference(exported.function(x), expected) <= 1e-5
    certificate = certify(exported)
    assert certificate.holds, certificate.errors
    save_certificate(certificate, exported)
    assert read_card(path)["certificate"]["holds"]


@pytest.mark.parametrize("name", ["broken.onnx", "broken.xml", "broken.tflite"])
def test_broken_exports_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=name):
        load_engine(tmp_path / name)
