"""Tabulate the variants: parameters, multiply-accumulates, and memory of a training step with and without `remat`.

Run: `python benchmarks/variants.py`, an hour on two busy cores; progress is on stderr. No run takes more memory than
`--memory-limit`: it is stopped, and what it would have shown is extrapolated from smaller runs and marked ≈.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE

import keras
import numpy as np
import psutil

from dl_techniques.layers.convnext import ConvNeXtBlock, ConvUNextStem
from dl_techniques.layers.pointwise import PointwiseConv
from dl_techniques.layers.resampling import Downsampling2x, SkipFusion
from dl_techniques.models.convunext.model import MODEL_VARIANTS, ConvUNextModel, create_convunext_variant
from tables import replace_section

SIZE = 256  # pixels of height and width
RUNGS = ((1, 128), (1, 192), (1, SIZE), (2, SIZE), (4, SIZE))  # batch and size, to climb while memory lasts
TARGET = 4.0  # images of `SIZE` in the table's step: the last rung
BYTES_PER_PARAMETER = 16  # the least that Adam needs in float32: the value, its gradient and two moments
HEADER = """\
| variant | parameters (M) | forward (GMAC) | training step (GB) | with `remat=True` (GB) |
| --- | ---: | ---: | ---: | ---: |"""
LEGEND = f"""
With 3 input channels and one output. GMAC: 10⁹ multiply-accumulates of the convolutions and matrix products for one
{SIZE}×{SIZE} image. Training step: peak resident memory of the whole process, Python and TensorFlow on the CPU
included, in two steps on four {SIZE}×{SIZE} images, float32, Adam. ≈ is extrapolated from fewer or smaller images or,
where the weights alone are too many, from fewer filters; over: more than the machine that measured could give."""


def multiply_accumulates(layer: keras.Layer) -> int:
    """Return the products of a layer with its kernels for one image; elementwise work is not counted."""

    def products(tensor, *kernels) -> int:
        return math.prod(tensor.shape[1:3]) * sum(math.prod(kernel.shape) for kernel in kernels)

    match layer:
        case ConvNeXtBlock():
            return products(layer.output, layer.dwconv.kernel, layer.pwconv1.kernel, layer.pwconv2.kernel)
        case ConvUNextStem() | Downsampling2x():
            return products(layer.output, layer.conv.kernel)
        case PointwiseConv():
            return products(layer.output, layer.kernel)
        case SkipFusion():  # K₁ at the coarse size, K₂ at the fine one
            return sum(math.prod(tensor.shape[1:]) * layer.filters for tensor in layer.input)
        case keras.layers.InputLayer() | keras.layers.Add() | keras.layers.Activation():
            return 0
    raise TypeError(f"`layer` must be one of ConvUNext's. Received: {layer}. Add its rule here.")


def weightless(variant: str, size: int = SIZE, **changes) -> ConvUNextModel:
    """Return a variant whose weights have shapes but no values: even xlarge takes no memory and half a second."""
    with keras.StatelessScope(initialize_variables=False):
        return create_convunext_variant(variant, input_shape=(size, size, 3), output_channels=1, **changes)


def train_two_steps(settings: dict) -> float:
    """Return the peak resident memory of this process in GB after two steps; to be called in a fresh process."""
    import resource  # not on Windows

    batch, size = settings.pop("batch"), settings.pop("size")
    model = create_convunext_variant(**settings, output_channels=1)
    model.compile(optimizer="adam", loss="mse")
    random = np.random.default_rng(0)
    image, target = (random.random((batch, size, size, channels), dtype="float32") for channels in (3, 1))
    for _ in range(2):
        model.train_on_batch(image, target)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure(settings: dict, limit: float) -> float | None:
    """Return the peak memory in GB of training in a fresh process, `None` if it exceeds the limit and is stopped."""
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, __file__, "--measure", json.dumps(settings)]
    process = psutil.Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, env={**os.environ, **environment})
    stopped = False
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            if process.memory_info().rss > limit * 1e9:
                process.kill()
                stopped = True
        time.sleep(0.05)
    output, _ = process.communicate()
    if process.returncode and not stopped:
        raise SystemExit(f"Training failed with status {process.returncode}. To see why, run {shlex.join(command)}")
    peak = None if stopped else float(output)
    print(f"{settings}: {f'over {limit:.1f}' if peak is None else f'{peak:.2f}'} GB", file=sys.stderr, flush=True)
    return peak


def extrapolate(points: list[tuple[float, float]], x: float) -> float:
    """Return y at x on the line through the last two points `(x, y)`."""
    (x0, y0), (x1, y1) = points[-2:]
    return y1 + (y1 - y0) / (x1 - x0) * (x - x1)


def climb(settings: dict, parameters: int, limit: float) -> list[tuple[float, float]]:
    """Return the measured `(images of SIZE, GB)` of the rungs that fit, two at least if they are to tell anything."""
    points: list[tuple[float, float]] = []
    if BYTES_PER_PARAMETER * parameters > limit * 1e9:
        return points
    for batch, size in RUNGS:
        images = batch * size**2 / SIZE**2
        if len(points) >= 2 and images < TARGET and extrapolate(points, TARGET) < 0.9 * limit:
            continue  # straight to the last
        if len(points) >= 2 and extrapolate(points, images) > limit:
            break
        peak = measure({**settings, "batch": batch, "size": size}, limit)
        if peak is None:
            break
        points.append((images, peak))
    return points


def from_fewer_filters(settings: dict, parameters: int, limit: float) -> float | None:
    """Return the GB at `TARGET` from a quarter and half of the filters, `None` if these do not fit either.

    What an image costs grows with the filters, the rest with the parameters.
    """
    filters = MODEL_VARIANTS[settings["variant"]]["initial_filters"]
    fixed, per_image = [], []
    for fewer in (filters // 4, filters // 2):
        count = weightless(settings["variant"], initial_filters=fewer).count_params()
        points = climb({**settings, "initial_filters": fewer}, count, limit)
        if len(points) < 2:
            return None
        fixed.append((count, extrapolate(points, 0)))
        per_image.append((fewer, extrapolate(points, 1) - extrapolate(points, 0)))
    return extrapolate(fixed, parameters) + TARGET * extrapolate(per_image, filters)


def memory_cell(settings: dict, parameters: int, limit: float, quick: bool) -> str:
    """Return the GB at `TARGET`: measured, extrapolated and marked, or only that they exceed the limit."""
    least = max(limit, BYTES_PER_PARAMETER * parameters / 1e9)
    points = climb(settings, parameters, limit)
    if points and points[-1][0] == TARGET:
        return f"{points[-1][1]:.1f}"
    if len(points) >= 2:
        return f"≈ {extrapolate(points, TARGET):.0f}"
    gigabytes = None if quick else from_fewer_filters(settings, parameters, limit)
    return f"over {least:.0f}" if gigabytes is None else f"≈ {gigabytes:.0f}"


def row(variant: str, limit: float, quick: bool) -> str:
    """Return a variant's line of the table."""
    model = weightless(variant)
    parameters = model.count_params()
    products = sum(multiply_accumulates(layer) for layer in model.layers)
    memory = [memory_cell({"variant": variant, "remat": remat}, parameters, limit, quick) for remat in (False, True)]
    return f"| {variant} | {parameters / 1e6:.1f} | {products / 1e9:.1f} | {memory[0]} | {memory[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", default=list(MODEL_VARIANTS), choices=list(MODEL_VARIANTS))
    memory = 0.8 * psutil.virtual_memory().total / 1e9
    parser.add_argument("--memory-limit", type=float, default=memory, help="GB a run may take; default: 80 %% of all")
    parser.add_argument("--quick", action="store_true", help="never train smaller models to extrapolate from")
    parser.add_argument("--markdown", type=Path, help="file whose table of variants to replace")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(train_two_steps(options.measure))
        return
    lines = [HEADER, *(row(variant, options.memory_limit, options.quick) for variant in options.variants), LEGEND]
    print(*lines, sep="\n")
    if options.markdown:
        replace_section(options.markdown, "variants", "\n".join(lines))


if __name__ == "__main__":
    main()
