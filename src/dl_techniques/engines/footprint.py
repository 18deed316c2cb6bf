"""How much memory a network takes for each pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel

SIZED = 2**17  # pixels: from here on OpenVINO saves more than it takes to compile for a size
# Copies of the finest level's widest tensor that are alive at once, counted by the peak of the resident memory
# (`benchmarks/tiling.py pixels`, `memory`). OpenVINO's are those of sizes that it is compiled for.
WIDE_COPIES = {"keras": 6.5, "onnxruntime": 5.0, "openvino": 1.45}


def model_bytes_per_pixel(model: ConvUNextModel, runtime: str = "keras") -> int:
    """Return how many bytes a model takes for each pixel that is computed at once, without its weights.

    Args:
        model: The model.
        runtime: What computes: `"keras"`, `"onnxruntime"` or `"openvino"`.
    """
    sizes, depth = model.filter_sizes, model.depth
    wide = WIDE_COPIES[runtime] * 4 * sizes[0]  # the expansion of a block of the finest level
    # Outputs of a level's layers: Keras keeps all until the network is done, others those that are still needed.
    outputs = 2 * model.blocks_per_level + 2 if runtime == "keras" else 1
    kept = sum(outputs * size / 4**level for level, size in enumerate(sizes[:depth]))
    return math.ceil(4 * (wide + kept + 2 * sizes[0] + model.input_channels + model.output_channels))
