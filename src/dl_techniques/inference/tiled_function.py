"""A model as a function of complete images; large ones are computed in tiles."""

from __future__ import annotations

import numpy as np

from dl_techniques.engines.engine import Engine
from dl_techniques.inference.memory import check_whole_image, plan_tile
from dl_techniques.inference.network import Network
from dl_techniques.tasks.base import Function


def tiled_function(engine: Engine, memory: int, extent: int) -> Function:
    """Return a model as a function of `(batch, height, width, channels)` that computes large images in exact tiles.

    Args:
        engine: The model.
        memory: Bytes that the network may take at once; images and outputs come on top.
        extent: Larger side of the largest image to come, in pixels.

    Raises:
        ArgumentError: Not even the smallest tile fits; of an export that takes whole images, the function raises it.
    """
    network = Network(engine)
    tile = plan_tile(network, memory, extent)

    def call(batch: np.ndarray) -> np.ndarray:
        check_whole_image(network, memory, batch.shape[1:3])
        return np.stack([network.apply(image, tile)[0] for image in batch])

    return call
