"""OpenVINO artifacts are made of its own operations, on every backend; so are the other formats, in a subprocess."""

import keras
import numpy as np
import pytest
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.openvino import openvino_core
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from models import image, run, saved

QUIET = Console(quiet=True)


@pytest.mark.each_backend
def test_openvino_is_written_on_every_backend(tmp_path):
    card = {"task": "segment", "normalization": "standardize"}
    source = saved(tmp_path, card, convnext_version="v2", output_channels=3)
    options = ExportOptions(output=tmp_path / "model.xml", activation="softmax")
    artifact = export_model(source, options, QUIET)
    assert artifact.comparison.value <= 1e-4
    pixels = 200 * image(2, 33, 47, 3)
    y = run(keras.saving.load_model(source), np.stack([standardize(x) for x in pixels]))[0].astype("float64")
    expected = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
    assert np.abs(load_engine(artifact.path).function(pixels) - expected).max() <= 1e-4
    assert read_card(artifact.path).as_dict()["export"]["activation"] == "softmax"


def test_openvino_graph_normalizes_by_its_own_operations_and_names_its_ends(tmp_path):
    source = saved(tmp_path, {"task": "segment"}, convnext_version="v2")
    for tiles, ends in (False, [{"image"}, {"output"}]), (True, [{"image"}, {"output"}, {"sums"}]):
        path = tmp_path / f"tiles-{tiles}.xml"
        export_model(source, ExportOptions(output=path, tiles=tiles), QUIET)
        graph = openvino_core().read_model(str(path))
        kinds = [operation.get_type_name() for operation in graph.get_ops()]
        assert "MVN" in kinds and ("ReduceL2" in kinds) != tiles and "Erf" not in kinds
        assert [end.get_names() for end in (graph.inputs[0], *graph.outputs)] == ends


@pytest.mark.only_backend("torch")  # TensorFlow makes every format: test_export.py
@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model"])
def test_other_formats_are_written_in_a_subprocess(name, tmp_path):
    source = saved(tmp_path, {"task": "denoise"}, convnext_version="v1", use_bias=False)
    artifact = export_model(source, ExportOptions(output=tmp_path / name), QUIET)
    assert artifact.comparison.holds and artifact.certificate.holds


@pytest.mark.parametrize(
    "settings",
    [
        {"convnext_version": "v2"},
        {"convnext_version": "v2", "use_bias": False},
        {"convnext_version": "v1", "use_bias": False, "equivariant_block": "no_norm", "downsample": "conv"},
        {"convnext_version": "v1", "use_bias": False, "equivariant_block": "batchnorm"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_openvino_transposes_hardly_any_tensor(settings, tmp_path):
    """Of the time of a prediction: written as Keras writes convolutions, it was a fifth to a third."""
    source = saved(tmp_path, {"task": "segment"}, initial_filters=16, block_kernel_size=7, **settings)
    path = tmp_path / "model.xml"
    export_model(source, ExportOptions(output=path), QUIET)
    core = openvino_core()
    graph = core.read_model(str(path))
    graph.reshape([1, 256, 256, 3])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    request = core.compile_model(graph, "CPU", hints).create_infer_request()
    for _ in range(3):
        request.infer([image(1, 256, 256, 3)])
    steps = request.get_profiling_info()
    if not any("avx512" in step.exec_type for step in steps):
        pytest.skip("the orders in memory are those of processors with AVX-512")
    turning = [step for step in steps if step.node_type in ("Transpose", "Reorder")]
    whole, turned = (sum(step.real_time.total_seconds() for step in some) for some in (steps, turning))
    assert turned <= 0.1 * whole
