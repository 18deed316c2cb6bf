"""How much memory a network takes for each pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dl_techniques.engines.formats import RUNTIMES

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel

SIZED = 2**17  # pixels: from here on OpenVINO saves more than it takes to compile for a size


def model_bytes_per_pixel(model: ConvUNextModel, runtime: str = "keras") -> int:
    """Return how many bytes a model takes for each pixel that is computed at once, without its weights.

    Args:
        model: The model.
        runtime: What computes, a name of `formats.RUNTIMES`.
    """
    sizes, depth, facts = model.filter_sizes, model.depth, RUNTIMES[runtime]
    wide = facts.wide_copies * 4 * sizes[0]  # the expansion of a block of the finest level
    outputs = 2 * model.blocks_per_level + 2 if facts.keeps_outputs else 1  # of a level's layers
    levels = sum(outputs * size / 4**level for level, size in enumerate(sizes[:depth]))
    return math.ceil(4 * (wide + levels + 2 * sizes[0] + model.input_channels + model.output_channels))
