"""What a machine allows at best: the products and the bytes of the graph against what the machine was measured to do.

The graph is taken as passes, each of which reads its inputs once and writes its output once, with all that is done
pixel by pixel fused into it. A pass takes the longer of its products at the rate of a large matrix product and its
bytes at the bandwidth of a copy; the limit is the sum. A V2 block is three passes: depthwise convolution and norm;
expansion, GELU and the sums of GRN; projection and residual, GRN folded in. Where it is shorter, the expansion is
computed twice instead of being stored.
"""

from __future__ import annotations

import importlib.util
import math
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from contestants import Job

Pass = tuple[int, int]  # products, values read and written
GEMM = {"cpu": 2048, "gpu": 8192}  # rows and columns of the matrices
COPY_BYTES = 2**29  # larger than most caches
TRAINING_PASSES = 3  # forward, gradient of the input, gradient of the kernel
ADAM_VALUES = 7  # of each parameter: reads value, gradient and two moments, writes value and moments


def block_passes(pixels: int, filters: int, kernel: int, expansion: int) -> tuple[list[Pass], list[Pass]]:
    """Return the passes of a V2 block that stores its wide tensor, and of one that computes it twice.

    Args:
        pixels: Of all images together.
        filters: Channels of the block.
        kernel: Width of the depthwise kernel, in pixels.
        expansion: Channels of the wide tensor, in multiples of `filters`.
    """
    narrow = pixels * filters
    depthwise = (narrow * kernel**2, 2 * narrow)
    expand = narrow * expansion * filters  # products; as many to project
    stored = [depthwise, (expand, (1 + expansion) * narrow), (expand, (2 + expansion) * narrow)]
    twice = [depthwise, (expand, narrow), (2 * expand, 3 * narrow)]
    return stored, twice


def graph_passes(model, batch: int) -> Iterator[list[list[Pass]]]:
    """Yield the passes of each layer of a variant, all ways to compute it.

    Args:
        model: Of a fixed image size.
        batch: Images of a step.
    """
    from dl_techniques.layers.convnext import ConvNeXtBlock
    from variants import multiply_accumulates

    for layer in model.layers:
        if isinstance(layer, ConvNeXtBlock):
            pixels = batch * math.prod(layer.output.shape[1:3])
            yield list(block_passes(pixels, layer.filters, layer.kernel_size, layer.expansion))
        elif products := multiply_accumulates(layer):  # other layers are fused into their neighbours
            inputs = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
            values = sum(math.prod(tensor.shape[1:]) for tensor in (*inputs, layer.output))
            yield [[(batch * products, batch * values)]]


def limit_seconds(layers: list[list[list[Pass]]], rate: float, bandwidth: float, bytes_per_value: int) -> float:
    """Return the least time of one forward pass.

    Args:
        layers: As `graph_passes` yields them.
        rate: Multiply-accumulates a second.
        bandwidth: Bytes a second, read and written.
        bytes_per_value: Of activations.
    """

    def seconds(passes: list[Pass]) -> float:
        return sum(max(products / rate, values * bytes_per_value / bandwidth) for products, values in passes)

    return sum(min(map(seconds, ways)) for ways in layers)


def limits(facts: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    """Return rate, bandwidth and the least seconds of each work, from the best of the times that were measured.

    Args:
        facts: Of the worker `machine`.
        times: Its seconds for `gemm` and `copy`.
    """
    rate, bandwidth = facts["gemm"] ** 3 / min(times["gemm"]), 2 * facts["copy_bytes"] / min(times["copy"])
    forward = limit_seconds(facts["layers"], rate, bandwidth, facts["bytes_per_value"])
    update = 4 * ADAM_VALUES * facts["parameters"] / bandwidth
    return {
        "gmac_per_second": rate / 1e9,
        "gigabytes_per_second": bandwidth / 1e9,
        "gmac": sum(products for ways in facts["layers"] for products, _ in ways[0]) / 1e9,
        "gigabytes": sum(values for ways in facts["layers"] for _, values in ways[0]) * facts["bytes_per_value"] / 1e9,
        "inference": forward,
        "training": TRAINING_PASSES * forward + update,
    }


def machine_works(job: Job) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Return a matrix product and a copy as works, and the facts of the graph that `limits` needs."""
    import keras

    from variants import weightless

    model = weightless(job.variant, size=job.size)
    facts = {
        "parameters": model.count_params(),
        "layers": list(graph_passes(model, job.batch)),
        "bytes_per_value": 2 if job.dtype == "bfloat16" else 4,
        "copy_bytes": COPY_BYTES,
        "gemm": GEMM[job.device],
        "processor": _processor(),
    }
    side = facts["gemm"]
    if keras.backend.backend() != "torch":
        source = np.ones(COPY_BYTES // 4, "float32")
        target = source.copy()
        return {"gemm": _fastest_product(side, job.threads), "copy": lambda: np.copyto(target, source)}, facts
    import torch

    device = "cpu"
    if job.device == "gpu":
        device, facts["processor"] = "cuda", torch.cuda.get_device_name()
    dtype = torch.bfloat16 if job.dtype == "bfloat16" else torch.float32
    factor = torch.ones((side, side), device=device, dtype=dtype)
    source_tensor = torch.ones(COPY_BYTES // 4, device=device)
    target_tensor = source_tensor.clone()

    def done(_) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    return {
        "gemm": (lambda: done(factor @ factor)) if job.device == "gpu" else _fastest_product(side, job.threads),
        "copy": lambda: done(target_tensor.copy_(source_tensor)),
    }, facts


def _fastest_product(side: int, threads: int | None) -> Callable[[], Any]:
    """Return a product of float32 matrices by OpenVINO, or NumPy: other libraries take half of some processors."""
    a, b = np.random.default_rng(0).uniform(size=(2, side, side)).astype("float32")
    if importlib.util.find_spec("openvino") is None:
        return lambda: a @ b
    from dl_techniques.engines.openvino import import_openvino, openvino_core

    openvino = import_openvino()
    given = openvino.opset13.parameter([side, side], np.float32)
    model = openvino.Model([openvino.opset13.matmul(given, openvino.opset13.constant(b), False, False)], [given])
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
    request = openvino_core().compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(a))
    return request.infer


def _processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), flags=re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
