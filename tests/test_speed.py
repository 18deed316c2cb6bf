"""The benchmarks of speed compare the same function, run their contestants to the end and count what they say."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from models import image, randomize, relative_difference, run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import block  # noqa: E402
import scaling  # noqa: E402
import speed  # noqa: E402
import startup  # noqa: E402
from contestants import Job  # noqa: E402
from forward import stock_convunext  # noqa: E402
from roofline import block_passes, graph_passes, limit_seconds  # noqa: E402
from variants import weightless  # noqa: E402
from worker import Worker, WorkerError  # noqa: E402

SMALL = Job(size=16, batch=1)


def torch_value(weight, shape: tuple[int, ...]) -> np.ndarray:
    """Return a Keras weight as PyTorch lays it out: kernels as (out, in by groups, height, width)."""
    value = keras.ops.convert_to_numpy(weight)
    if value.ndim == 4 and value.shape[:2] != (1, 1) or value.ndim == 4 and value.shape[3] > 1:
        depthwise = shape[1] == 1 and value.shape[2] == shape[0]
        value = value.transpose(2, 3, 0, 1) if depthwise else value.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(value.reshape(shape))


def in_order_of_the_graph(net) -> list:
    """Return the parameters of the hand-written network in the order of its computation."""
    parts = [net.stem]
    for blocks, down in zip(net.encoder, net.downs, strict=True):
        parts += [blocks, down]
    parts.append(net.bottleneck)
    for fusion, blocks in zip(net.fusions, net.decoder, strict=True):
        parts += [fusion, blocks]
    return [parameter for part in (*parts, net.head) for parameter in part.parameters()]


@pytest.mark.only_backend("torch")
def test_hand_written_graph_with_the_textbook_weights_gives_the_textbook_output():
    import torch

    from torch_nets import TorchConvUNext, giga_products

    stock, hand = stock_convunext("tiny", 32), TorchConvUNext("tiny").eval()
    randomize(stock)
    with torch.no_grad():
        for parameter, weight in zip(in_order_of_the_graph(hand), stock.weights, strict=True):
            parameter.copy_(torch.from_numpy(torch_value(weight, tuple(parameter.shape))))
        x = image(2, 32, 32, 3)
        y = hand(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert relative_difference(y, run(stock, x)[0]) <= 1e-5
    ours = sum(
        ways[0][index][0] for ways in graph_passes(weightless("tiny", size=32), 1) for index in range(len(ways[0]))
    )
    # Ours has fewer products where it fuses: a quarter of those of the upsampled half.
    spared = sum(3 * 64 * 2**level * 32 * 2**level * (16 >> level) ** 2 for level in range(3))
    assert giga_products(hand, 32) * 1e9 == pytest.approx(ours + spared)


ONCE = pytest.mark.only_backend("tensorflow")  # contestants choose their own


@ONCE
def test_a_comparison_measures_in_turns_and_says_who_could_not_take_part(tmp_path):
    job = Job(size=16, batch=1, artifact=str(tmp_path / "missing.keras"))
    names = ["textbook-tensorflow", "ours-tensorflow", "openvino"]
    rows, limit = speed.compare(names, job, "inference", speed.Effort(turns=3), tmp_path)
    textbook, ours, missing = rows
    assert not ours.error and ours.ratio > 0 and len(ours.reference) == len(textbook.seconds) >= 3 == speed.LEAST_TURNS
    assert ours.facts["parameters"] == textbook.facts["parameters"] == weightless("tiny").count_params()
    assert ours.peak["resident"] > 1e8
    assert "missing.keras" in missing.error and not missing.seconds
    assert 0 < limit["inference"] < limit["training"]

    document = tmp_path / "performance.md"
    document.write_text("<!-- speed:begin --><!-- speed:end -->")
    speed.write({"inference": (rows, limit)}, job, tmp_path, document)
    assert json.loads((tmp_path / "speed.json").read_text())["works"]["inference"]["rows"][1]["seconds"] == ours.seconds
    assert (tmp_path / "speed-inference.svg").read_text().count("<svg") == 1
    assert "| ours, TensorFlow |" in document.read_text() and "missing.keras" in document.read_text()


@ONCE
@pytest.mark.parametrize("name", ["torch-eager", "ours-remat", "dncnn"])
def test_contestants_train(name, tmp_path):
    with Worker(name, SMALL, tmp_path) as worker:
        seconds = worker.run("training", 2)
        assert len(seconds) == 2 and min(seconds) > 0


@ONCE
def test_half_precision_reports_its_deviation(tmp_path):
    job = speed.save_artifact(SMALL, tmp_path)
    try:
        with Worker("openvino-bfloat16", job, tmp_path) as worker:
            share = re.fullmatch(r"off by up to (\d+\.\d\d)% of the range of the output", worker.facts["note"])
            assert share and 0 < float(share[1]) < 2 and len(worker.run("inference", 2)) == 2
    except WorkerError as error:
        assert "has no bfloat16" in str(error)  # as most processors


@ONCE
def test_points_of_a_curve_are_measured_or_say_why_not(tmp_path):
    job = speed.save_artifact(SMALL, tmp_path)
    points = [
        scaling.Point("openvino", "inference", dataclasses.replace(job, size=64, memory=2 * 10**9), []),
        scaling.Point("openvino", "inference", dataclasses.replace(job, artifact="missing.keras"), []),
    ]
    scaling.measure(points, 2, tmp_path)
    bounded, missing = points
    assert len(bounded.seconds) == 2 and bounded.resident > 1e8 and not bounded.error
    assert "missing.keras" in missing.error
    scaling.write({"size": points}, tmp_path, None)
    scaling.write({"batch": [bounded]}, tmp_path, None)
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert list(written) == ["size", "batch"] and written["size"][0]["seconds"] == bounded.seconds
    assert str(tmp_path) not in json.dumps(written)
    assert (tmp_path / "scaling.svg").read_text().count("<svg") == 1


@ONCE
@pytest.mark.parametrize(
    "work, names", [("training", ["stock", "all", "remat"]), ("prediction", list(block.PREDICTION))]
)
def test_what_a_change_to_a_block_gains_is_measured(work, names):
    titles = block.TRAINING | block.PREDICTION
    found = block.compare(work, names, (1, 32, 32, 8), turns=2)
    assert all(seconds > 0 for seconds, _ in found.values())
    assert block.table(work, titles, found).count("\n") == len(names) + 1


@ONCE
def test_the_start_of_a_prediction_is_measured(preset):
    seconds = startup.measure(["OpenVINO"], str(preset), side=32, turns=1)
    assert len(seconds["OpenVINO"]) == 2 and min(seconds["OpenVINO"]) > 0
    assert startup.table(seconds).count("\n") == 2


def test_trainings_that_do_not_fit_into_memory_are_left_out():
    sides = {
        memory: [p.job.size for p in scaling.curves(Job(), "openvino", "ours-tensorflow", memory)["training"]]
        for memory in (3e9, 1e12)
    }
    assert max(sides[3e9]) < 256 < max(sides[1e12]) == 4096


def test_seconds_for_a_megapixel():
    point = scaling.Point("openvino", "inference", Job(batch=2, size=500), [0.9, 1.1, 1.0])
    assert point.megapixel_seconds == pytest.approx(2.0)


def test_another_graph_is_refused():
    with pytest.raises(WorkerError, match="parameters 3 against 4"):
        speed._check_same_graph("ours-jax", {"parameters": 3}, {"parameters": 4, "output": [8, 8, 1]})


def test_limit_is_the_longer_of_products_and_bytes_and_the_faster_way():
    stored, twice = block_passes(pixels=10, filters=3, kernel=7, expansion=4)
    assert stored == [(10 * 3 * 49, 60), (360, 150), (360, 180)]
    assert twice == [(10 * 3 * 49, 60), (360, 30), (720, 90)]
    products_only = limit_seconds([[stored, twice]], rate=2.0, bandwidth=float("inf"), bytes_per_value=4)
    assert products_only == pytest.approx((1470 + 720) / 2)
    bytes_only = limit_seconds([[stored, twice]], rate=float("inf"), bandwidth=5.0, bytes_per_value=4)
    assert bytes_only == pytest.approx(180 * 4 / 5)
