"""A V2 network for tiles of an image: response normalization by statistics of the whole, which tiles add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from dl_techniques.layers.convnext import ConvNeXtBlock
from dl_techniques.models.convunext.function import no_gradients
from dl_techniques.models.convunext.graph import connect_layers

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


class TileBlock(keras.layers.Layer):
    """A V2 block of a tile, which response normalization scales by statistics of the complete image.

    Args:
        block: The block; its weights are shared.

    Call arguments:
        x: `(batch, height, width, filters)`.
        sums: Sums of squares over the complete image, `(batch, channels)`; where negative, those of this tile count.
        valid_mask: 1 at the pixels that no other tile counts, elsewhere 0, `(batch, height, width, 1)`.

    Returns:
        A tensor of the shape of `x`, and the sum of squares over the pixels that count, `(batch, channels)`.
    """

    def __init__(self, block: ConvNeXtBlock, **kwargs) -> None:
        super().__init__(**kwargs)
        self.block = block

    def call(self, x, sums, valid_mask):
        tile_sums = []

        def bottleneck(y):
            y = self.block.pwconv1(y)
            tile_sums.append(self.block.grn.sum_of_squares(y, valid_mask))
            return self.block.reduce(y, ops.where(sums < 0, tile_sums[0], sums))

        return x + self.block.branch(x, bottleneck), tile_sums[0]

    def compute_output_shape(self, x_shape, sums_shape, valid_mask_shape):
        return tuple(x_shape), tuple(sums_shape)


TileFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def tile_function(model: ConvUNextModel) -> TileFunction:
    """Return a V2 model as a function of a tile and of the statistics of the image that it is cut from.

    It shares the model's weights. Its arguments are the tile, `(height, width, channels)`; the valid mask, 1 at the
    pixels that no other tile counts, elsewhere 0, `(height, width)`; and the sums of squares over the complete image,
    `(sum(sum_sizes(model)),)`, float32, where negative those of this tile count. It returns the finest output and the
    sums over the valid pixels.
    """
    network = tile_network(model)

    def call(tile: np.ndarray, valid_mask: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = [tile[None], valid_mask[None, ..., None], sums[None]]
        if keras.backend.backend() == "jax":
            outputs = network.predict(inputs, batch_size=1, verbose=0)
        else:
            with no_gradients():
                outputs = network(inputs, training=False)
        output, tile_sums = (ops.convert_to_numpy(x)[0] for x in outputs)
        return output, tile_sums

    return call


def sum_sizes(model: ConvUNextModel) -> list[int]:
    """Return the number of channels of every response normalization, in the order of computation."""
    down = [4 * size for size in model.filter_sizes for _ in range(model.blocks_per_level)]
    return down + down[: -model.blocks_per_level][::-1]


def tile_network(model: ConvUNextModel) -> keras.Model:
    """Return the graph of `tile_function`, of a batch: image, valid mask and sums to output and sums."""
    image = keras.Input((None, None, model.input_channels), name="image")
    valid_mask = keras.Input((None, None, 1), name="valid_mask")
    sizes = sum_sizes(model)
    sums = keras.Input((sum(sizes),), name="sums_of_squares")
    ends = np.cumsum(sizes).tolist()
    levels = [valid_mask]
    for _ in range(model.depth):  # tiles begin where the pooling windows begin: the same pixels, level by level
        levels.append(levels[-1][:, ::2, ::2])
    tile_sums = []

    def call_block(block, x, level: int):
        begin, end = ends[len(tile_sums)] - sizes[len(tile_sums)], ends[len(tile_sums)]
        x, block_sums = TileBlock(block, dtype=block.dtype_policy)(x, sums[:, begin:end], levels[level])
        tile_sums.append(block_sums)
        return x

    arguments = {**model.get_config(), "enable_deep_supervision": False}
    layers = {layer.name: layer for layer in model.layers}
    (output,) = connect_layers(layers, arguments, image, call_block)
    return keras.Model([image, valid_mask, sums], [output, ops.concatenate(tile_sums, axis=-1)])
