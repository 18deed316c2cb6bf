"""Time the forward pass of `tiny` against the same graph written with stock Keras layers, in one run.

Run: `python benchmarks/forward.py`. Contestants alternate, so that drift of the machine cancels; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import keras
import numpy as np
from keras import layers, ops

from dl_techniques.models.convunext.model import MODEL_VARIANTS, create_convunext_variant


class StockGRN(layers.Layer):
    """Global response normalization the usual way; Keras has none."""

    def build(self, input_shape) -> None:
        shape = (1, 1, 1, input_shape[-1])
        self.gamma = self.add_weight(shape=shape, initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")

    def call(self, x):
        response = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True) + 1e-12)
        share = response / (ops.mean(response, axis=-1, keepdims=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


def stock_block(x, filters: int):
    """Return `x + branch(x)` of ConvNeXt V2 from stock layers."""
    branch = layers.DepthwiseConv2D(7, padding="same")(x)
    branch = layers.LayerNormalization(epsilon=1e-6)(branch)
    branch = layers.Conv2D(4 * filters, 1)(branch)
    branch = layers.Activation("gelu")(branch)
    branch = StockGRN()(branch)
    branch = layers.Conv2D(filters, 1)(branch)
    return layers.Add()([x, branch])


def stock_convunext(variant: str, size: int, channels: int = 3) -> keras.Model:
    """Return the graph of a variant, V2 with biases, one output channel, from stock layers."""
    settings = MODEL_VARIANTS[variant]
    depth, blocks = settings["depth"], settings["blocks_per_level"]
    filters = [settings["initial_filters"] * 2**level for level in range(depth + 1)]
    inputs = keras.Input((size, size, channels))
    x = layers.Conv2D(filters[0], 7, padding="same")(inputs)
    x = stem = layers.LayerNormalization(epsilon=1e-6)(x)
    skips = []
    for level in range(depth):
        for _ in range(blocks):
            x = stock_block(x, filters[level])
        skips.append(x)
        x = layers.MaxPooling2D(2, padding="same")(x)
        x = layers.Conv2D(filters[level + 1], 1)(x)
    for _ in range(blocks):
        x = stock_block(x, filters[depth])
    for level in reversed(range(depth)):
        x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        x = layers.Concatenate()([x, skips[level]])
        x = layers.Conv2D(filters[level], 1)(x)
        for _ in range(blocks):
            x = stock_block(x, filters[level])
    x = layers.Add()([x, stem])
    return keras.Model(inputs, layers.Conv2D(1, 1)(x))


def compiled_forward(model: keras.Model):
    """Return the fastest stock way to call a model: a graph on TensorFlow, jit on JAX, eager on PyTorch."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=False))
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(lambda x: model(x, training=False))
    import torch

    def forward(x):
        with torch.inference_mode():
            return model(x, training=False)

    return forward


def measure(variant: str, batch: int, size: int, runs: int) -> dict[str, list[float]]:
    """Return the seconds of each run of `ours` and `stock`, after showing that both have as many parameters."""
    ours = create_convunext_variant(variant, input_shape=(size, size, 3), output_channels=1)
    stock = stock_convunext(variant, size)
    if ours.count_params() != stock.count_params():
        raise SystemExit(f"not the same graph: {ours.count_params()} against {stock.count_params()} parameters")
    image = ops.convert_to_tensor(np.random.default_rng(0).uniform(size=(batch, size, size, 3)).astype("float32"))
    contestants = {"ours": compiled_forward(ours), "stock": compiled_forward(stock)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(runs + 1):  # the first run compiles and is not counted
        for name, forward in contestants.items():
            start = time.perf_counter()
            ops.convert_to_numpy(forward(image))
            if run:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="tiny", choices=list(MODEL_VARIANTS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--limit", type=float, help="exit with status 1 if ours / stock is above this")
    options = parser.parse_args()
    seconds = measure(options.variant, options.batch, options.size, options.runs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{options.variant}, {options.batch}x{options.size}x{options.size}, {keras.backend.backend()}, forward")
    for name, values in seconds.items():
        print(f"  {name:6s} median {medians[name]:.3f} s   min {min(values):.3f}   max {max(values):.3f}")
    ratio = medians["ours"] / medians["stock"]
    print(f"  ours / stock = {ratio:.2f}")
    if options.limit is not None and ratio > options.limit:
        raise SystemExit(f"ours / stock = {ratio:.2f} is above {options.limit}")


if __name__ == "__main__":
    main()
