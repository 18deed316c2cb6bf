"""What computes, side by side: the images a second of each engine against Keras on TensorFlow, on the same images.

Run: `python benchmarks/engines.py --models denoise-gray run/ --side 512` (KERAS_BACKEND=tensorflow; extras openvino and
onnx). Engines alternate, so that drift of the machine cancels; medians are printed, with the processor time, which
other programs disturb less, and the largest difference to Keras by the range of the output.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError

ENGINES: tuple[tuple[EngineName, Precision], ...] = (
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("onnxruntime", "float32"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["denoise-gray"])
    parser.add_argument("--side", type=int, default=512, help="height and width of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"], help="those to hold against Keras")
    arguments = parser.parse_args()
    print("| model | engine | images/s | of Keras | processor time of Keras' | difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for model in arguments.models:
        measure(model, arguments.side, arguments.repeats, arguments.engines)


def measure(model: str, side: int, repeats: int, engines: list[str]) -> None:
    """Print a row for each engine that this machine has."""
    keras = load_engine(model)
    functions = {"keras": keras.function}
    for engine, precision in ENGINES:
        if engine not in engines:
            continue
        try:
            loaded = load_engine(model, engine, precision)
        except ArgumentError as error:
            print(f"{engine} in {precision} left out: {error}")
            continue
        functions[engine if precision == "float32" else f"{engine}, {precision}"] = loaded.function
    x = np.random.default_rng(0).uniform(size=(1, side, side, keras.channels)).astype("float32")
    outputs = {engine: function(x) for engine, function in functions.items()}  # compiles
    walls: dict[str, list[float]] = {engine: [] for engine in functions}
    processors: dict[str, list[float]] = {engine: [] for engine in functions}
    for _ in range(repeats):
        for engine, function in functions.items():
            wall, processor = time.perf_counter(), time.process_time()
            function(x)
            walls[engine].append(time.perf_counter() - wall)
            processors[engine].append(time.process_time() - processor)
    expected = outputs["keras"]
    keras_wall, keras_processor = (statistics.median(times["keras"]) for times in (walls, processors))
    for engine in functions:
        wall, processor = statistics.median(walls[engine]), statistics.median(processors[engine])
        difference = np.abs(outputs[engine] - expected).max() / np.ptp(expected)
        print(
            f"| {keras.source} | {engine} | {1 / wall:.2f} | {keras_wall / wall:.2f} | "
            f"{processor / keras_processor:.2f} | {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
