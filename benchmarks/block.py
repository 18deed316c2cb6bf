"""What each change to a block gains: time and memory of one training step, and of one prediction on OpenVINO.

Run: `python benchmarks/block.py --markdown docs/performance.md`. One V2 block of the finest level of `tiny` on four
images of 256×256; each variant in a process of its own, which take turns, so that drift of the machine cancels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from contestants import as_trained
from tables import replace_section
from worker import peak_resident

TRAINING = {
    "stock": "layers that Keras has",
    "plain": "plain layers of this package",
    "depthwise": "depthwise convolution by hand",
    "norm": "layer norm by hand",
    "bottleneck": "bottleneck by hand",
    "all": "all three by hand (what is used)",
    "remat": "all three by hand, `remat`",
}
PREDICTION = {
    "operations": "convolution, norm and sums of squares as Keras writes them",
    "norms": "norm and sums as OpenVINO's own, pixel by pixel",
    "all": "the convolution, too, its result read pixel by pixel (what is used)",
}


# === One variant, in its process ===


def training_step(name: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """Return a step: output and the gradients by input and kernels, in TensorFlow's graph."""
    import keras
    import tensorflow as tf

    from dl_techniques.layers import convnext, tensorflow_cpu
    from forward import stock_block

    def chosen(block, x):
        depthwise, norm, bottleneck = tensorflow_cpu.block_functions(block)  # the norm adds the convolution's bias
        return {
            "plain": None,
            "depthwise": (lambda x: depthwise(x) + block.dwconv.bias, block.norm, block._bottleneck),
            "norm": (lambda x: block.dwconv(x) - block.dwconv.bias, norm, block._bottleneck),
            "bottleneck": (block.dwconv, block.norm, bottleneck),
        }.get(name, (depthwise, norm, bottleneck))

    convnext.custom_gradient_functions = chosen
    inputs = keras.Input(shape[1:])
    channels = shape[-1]
    if name == "stock":
        output = stock_block(inputs, channels)
    else:
        output = convnext.ConvNeXtBlock(channels, remat=name == "remat")(inputs)
    model = keras.Model(inputs, output)
    images = tf.random.stateless_normal(shape, seed=(0, 0))

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(model(x, training=True)))
        return tape.gradient(loss, [x, *(weight.value for weight in model.trainable_weights)])

    return lambda: [tf.convert_to_tensor(gradient).numpy() for gradient in gradients(images)]


def prediction(name: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """Return a prediction of one block on OpenVINO."""
    import keras

    from dl_techniques.engines.openvino import import_openvino, openvino_core
    from dl_techniques.layers import convolution, normalization
    from dl_techniques.layers.convnext import ConvNeXtBlock

    if name != "all":
        convolution.DepthwiseConvolution.call = keras.layers.DepthwiseConv2D.call
    if name == "operations":
        normalization.ChannelNormalization.call = keras.layers.LayerNormalization.call
        normalization.GlobalResponseNormalization.sum_of_squares = lambda self, x, valid=None: keras.ops.sum(
            keras.ops.square(x), axis=(1, 2)
        )
    openvino = import_openvino()
    opset13 = openvino.opset13
    block = ConvNeXtBlock(shape[-1])
    block.build(shape)
    as_trained(block)
    given = opset13.parameter(list(shape), np.float32, name="image")
    output = block(keras.ops.convert_to_tensor(given.output(0)))
    make_model: Any = openvino.Model  # its hints are wrong
    graph = make_model([opset13.result(output.output)], [given])
    compiled = openvino_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).random(shape, dtype="float32")
    return lambda: compiled([images])[0]


def serve(work: str, name: str, shape: tuple[int, ...]) -> None:
    """Make a step for each line of standard input; answer with its seconds and the memory that steps added so far."""
    step = (training_step if work == "training" else prediction)(name, shape)
    before = peak_resident()
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps([time.perf_counter() - start, peak_resident() - before]), flush=True)


# === Comparison ===


def compare(work: str, names: list[str], shape: tuple[int, ...], turns: int) -> dict[str, tuple[float, float]]:
    """Return median seconds of a step and the bytes that it added, of each variant."""
    backend = "tensorflow" if work == "training" else "openvino"
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    workers: dict[str, Any] = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", work, name, json.dumps(shape)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        for name in names
    }  # fmt: skip
    answers: dict[str, list[list[float]]] = {name: [] for name in names}
    try:
        for turn in range(turns + 2):  # two that are not counted: they compile
            for name in names if turn % 2 else reversed(names):
                print(file=workers[name].stdin, flush=True)
                answers[name].append(json.loads(workers[name].stdout.readline()))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return {name: (statistics.median(s for s, _ in found[2:]), found[-1][1]) for name, found in answers.items()}


def table(work: str, titles: dict[str, str], found: dict[str, tuple[float, float]]) -> str:
    """Return the comparison as a Markdown table; ratios are by the first row."""
    seconds, memory = next(iter(found.values()))
    lines = [f"| {work} of one block | ms | ratio | memory added (GB) | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, (mine, added) in found.items():
        share = added / max(memory, 1)
        lines.append(f"| {titles[name]} | {1e3 * mine:.0f} | {mine / seconds:.2f} | {added / 1e9:.2f} | {share:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--markdown", type=Path, help="document whose tables to replace")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        work, name, shape = options.serve
        return serve(work, name, tuple(json.loads(shape)))
    shape = (options.batch, options.size, options.size, options.channels)
    tables = []
    for work, titles in (("training", TRAINING), ("prediction", PREDICTION)):
        tables.append(table(work, titles, compare(work, list(titles), shape, options.turns)))
        print(f"{tables[-1]}\n", flush=True)
    if options.markdown:
        replace_section(options.markdown, "block", "\n\n".join(tables))


if __name__ == "__main__":
    main()
