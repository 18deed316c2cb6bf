"""How much memory a network takes, known before it takes it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from dl_techniques.errors import ArgumentError

if TYPE_CHECKING:
    from dl_techniques.inference.network import Network
    from dl_techniques.models.convunext.model import ConvUNextModel

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Copies of the finest level's widest tensor that are alive at once, counted by the peak of the resident memory
# (`benchmarks/tiling.py memory`).
WIDE_COPIES = 6.5
WHOLE_REMEDY = "Raise --max-memory, or export the model again with --tiles."
LARGEST_TILE = 2048  # beyond, what tiles overlap is little already


def parse_memory(text: str) -> int:
    """Return a number of bytes: "2GB" is 2·10⁹, "2GiB" 2·2³⁰, "2000000" as it stands.

    Raises:
        ArgumentError: It is no amount of memory.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]I?)?B?\s*", text.upper())
    if found is None or float(found[1]) == 0:
        raise ArgumentError("max_memory", "must be an amount of memory such as 2GB or 500MB", text)
    return int(float(found[1]) * UNITS[found[2] or ""])


def bytes_per_pixel(network: Network) -> int:
    """Return how many bytes a network takes for each pixel that is computed at once; 0 where that is not known."""
    engine = network.engine
    if engine.model is not None:
        return model_bytes_per_pixel(engine.model)
    return 0 if engine.tiling is None else engine.tiling.bytes_per_pixel


def model_bytes_per_pixel(model: ConvUNextModel) -> int:
    """Return how many bytes a model takes for each pixel that is computed at once, without its weights."""
    sizes, depth = model.filter_sizes, model.depth
    wide = WIDE_COPIES * 4 * sizes[0]  # the expansion of a block of the finest level
    outputs = 2 * model.blocks_per_level + 2  # of a level's layers, which Keras keeps until the network is done
    kept = sum(outputs * size / 4**level for level, size in enumerate(sizes[:depth]))
    return math.ceil(4 * (wide + kept + 2 * sizes[0] + model.input_channels + model.output_channels))


def array_bytes(network: Network, size: tuple[int, int], tta: int, planes: int = 1) -> int:
    """Return how many bytes an image of this height and width and its results take, at most, as arrays.

    Args:
        network: The model.
        size: Height and width, in pixels.
        tta: Symmetries that are averaged over.
        planes: Parts of the image, its colours, that go through the network one after another.
    """
    # Normalized in float64; probabilities, their choice and, over symmetries, their moments.
    return planes * size[0] * size[1] * (28 * network.engine.channels + (24 if tta == 1 else 40) * network.outputs)


def network_bytes(network: Network, size: tuple[int, int]) -> int:
    """Return how many bytes a network takes, at least, for an image of this height and width; 0 if not known."""
    smallest, each = network.smallest_tile, bytes_per_pixel(network)
    return each * (size[0] * size[1] if smallest is None else min(smallest, max(size)) ** 2)


def check_whole(network: Network, memory: int, size: tuple[int, int]) -> None:
    """Refuse an image that must be computed whole and does not fit.

    Args:
        network: The model.
        memory: Bytes for what is computed at once.
        size: Height and width of the image.

    Raises:
        ArgumentError: It takes whole images only, and this one takes more than that.
    """
    if network.whole and (needed := network_bytes(network, size)) > memory:
        source = network.engine.source
        rule = f"must leave {needed / 1e6:.0f} MB for {size[1]}x{size[0]} pixels: {source} takes images whole"
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", WHOLE_REMEDY)


def plan_tile(network: Network, memory: int, extent: int = LARGEST_TILE) -> int:
    """Return the height and width of the largest tile that stays within an amount of memory.

    Args:
        network: The model.
        memory: Bytes for what is computed at once.
        extent: Larger side of the image, in pixels; what is no larger than a tile is one.

    Raises:
        ArgumentError: Not even the smallest tile does.
    """
    smallest, needed = network.smallest_tile, bytes_per_pixel(network)
    if smallest is None:
        return LARGEST_TILE
    side = math.isqrt(memory // needed) // network.multiple * network.multiple
    if side < min(smallest, extent):
        least = math.ceil(smallest**2 * needed / 1e6)
        rule = (
            f"must leave {least} MB for a tile of {smallest}x{smallest} pixels, the network looking {network.halo} far"
        )
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", "Raise --max-memory.")
    return min(side, max(LARGEST_TILE, smallest))
