"""The benchmark compares the same function: the stock graph with our weights gives our output."""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

from dl_techniques.models.convunext.model import create_convunext_variant
from models import image, randomize, relative_difference, run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from forward import measure, stock_convunext  # noqa: E402


def copy_weights(ours: keras.Model, stock: keras.Model) -> None:
    """Give the stock graph our weights: both list theirs in the order of the graph, kernels of another rank."""
    by_level = {layer.name: layer for layer in ours.layers}
    order = ["stem"]
    depth, blocks = ours.depth, ours.blocks_per_level
    for level in range(depth):
        order += [f"encoder_{level}_block_{i}" for i in range(blocks)] + [f"encoder_{level}_downsample"]
    order += [f"bottleneck_block_{i}" for i in range(blocks)]
    for level in reversed(range(depth)):
        order += [f"decoder_{level}_fusion"] + [f"decoder_{level}_block_{i}" for i in range(blocks)]
    order.append("head_0")
    values = [ops.convert_to_numpy(weight) for name in order for weight in weights_in_order(by_level[name])]
    for target, value in zip(stock.weights, values, strict=True):
        target.assign(value.reshape(target.shape))


def weights_in_order(layer) -> list:
    """Return a layer's weights in the order of its computation."""
    if hasattr(layer, "dwconv"):
        return [w for part in (layer.dwconv, layer.norm, layer.pwconv1, layer.grn, layer.pwconv2) for w in part.weights]
    return layer.weights


def test_stock_graph_with_our_weights_gives_our_output():
    ours = create_convunext_variant("tiny", input_shape=(64, 64, 3), output_channels=1)
    randomize(ours)
    stock = stock_convunext("tiny", 64)
    copy_weights(ours, stock)
    x = image(2, 64, 64, 3)
    assert relative_difference(run(ours, x)[0], run(stock, x)[0]) <= 1e-5


def test_forward_benchmark_measures_both():
    seconds = measure("tiny", batch=1, size=32, runs=2)
    assert set(seconds) == {"ours", "stock"} and all(np.all(np.array(s) > 0) and len(s) == 2 for s in seconds.values())
