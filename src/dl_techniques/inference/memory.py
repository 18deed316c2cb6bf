"""How much memory a network takes, known before it takes it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dl_techniques.engines.footprint import SIZED, model_bytes_per_pixel
from dl_techniques.engines.formats import RUNTIMES
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.settings import AUTO

if TYPE_CHECKING:
    from dl_techniques.inference.network import Network

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
WHOLE_REMEDY = "Raise --max-memory, or export the model again with --tiles."
LARGEST_TILE = 4096  # beyond, what tiles overlap is little already
AUTO_SHARE = 0.75  # of what is free; the rest is for the runtime and for what others begin meanwhile
# Where Linux tells a container what it may take, takes, and takes for files that it would give back; versions 2 and 1.
CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def parse_memory(text: str) -> int:
    """Return a number of bytes: "2GB" is 2·10⁹, "2GiB" 2·2³⁰, "2000000" as it stands, "auto" most of what is free.

    Raises:
        ArgumentError: It is no amount of memory.
    """
    if text.strip().lower() == AUTO:
        return int(AUTO_SHARE * free_memory())
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]I?)?B?\s*", text.upper())
    if found is None or float(found[1]) == 0:
        raise ArgumentError("max_memory", "must be auto or an amount of memory such as 2GB or 500MB", text)
    return int(float(found[1]) * UNITS[found[2] or ""])


def free_memory(container: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of main memory that are free, of a container those that it may still take.

    Args:
        container: Where Linux tells what a container may take.
    """
    import psutil

    free = psutil.virtual_memory().available
    for limit, taken, statistics, files in CONTAINER:
        try:
            figures = dict(line.split() for line in (container / statistics).read_text().splitlines())
            used = int((container / taken).read_text()) - int(figures.get(files, 0))
            free = min(free, max(int((container / limit).read_text()) - used, 0))
        except (OSError, ValueError):
            continue  # not there, or "max"
    return free


def bytes_per_pixel(network: Network) -> int:
    """Return how many bytes a network takes for each pixel that is computed at once; 0 where that is not known."""
    engine = network.engine
    if engine.model is not None:
        return model_bytes_per_pixel(engine.model)
    return 0 if engine.tiling is None else engine.tiling.bytes_per_pixel


def tile_bytes(network: Network, side: int) -> int:
    """Return how many bytes a network takes for tiles of this height and width, at most."""
    return _bytes(network, bytes_per_pixel(network), side * side)


def _bytes(network: Network, each: int, pixels: int) -> int:
    small = RUNTIMES[network.engine.runtime].small_image_factor * min(pixels, SIZED)
    return math.ceil(each * max(pixels, small))


def _side(network: Network, each: int, memory: int) -> int:
    """Return the largest height and width of tiles within an amount of memory."""
    side = math.isqrt(memory // each)
    factor = RUNTIMES[network.engine.runtime].small_image_factor
    return side if _bytes(network, each, side * side) <= memory else math.isqrt(int(memory / (factor * each)))


def array_bytes(network: Network, size: tuple[int, int], tta: int, planes: int = 1, samples: int = 0) -> int:
    """Return how many bytes an image of this height and width and its results take, at most, as arrays.

    Args:
        network: The model.
        size: Height and width, in pixels.
        tta: Symmetries that are averaged over.
        planes: Parts of the image, its colours, that go through the network one after another.
        samples: A pixel of the file.
    """
    # Normalized in float64; probabilities, their choice and, over symmetries, their moments.
    each = 28 * network.engine.channels + (24 if tta == 1 else 40) * network.outputs
    left_out = max(samples - planes * network.engine.channels, 0)
    return size[0] * size[1] * (planes * each + 8 * left_out)


def network_bytes(network: Network, size: tuple[int, int]) -> int:
    """Return how many bytes a network takes, at least, for an image of this height and width; 0 if not known."""
    smallest = network.smallest_tile
    whole = _bytes(network, bytes_per_pixel(network), size[0] * size[1])
    return whole if smallest is None else min(whole, tile_bytes(network, smallest))


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
        rule = f"must leave {needed / 1e6:.0f} MB for {size[1]}x{size[0]} pixels: {source} takes images in one piece"
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", WHOLE_REMEDY)


def plan_tile(network: Network, memory: int, extent: int = LARGEST_TILE) -> int:
    """Return the height and width of the largest tile that stays within an amount of memory; of the image if it does.

    Args:
        network: The model.
        memory: Bytes for what is computed at once.
        extent: Larger side of the image, in pixels; what is no larger than a tile is one.

    Raises:
        ArgumentError: Not even the smallest tile does.
    """
    smallest = network.smallest_tile
    if smallest is None:
        return LARGEST_TILE
    if not network.tiled_by_patch and extent <= _side(network, bytes_per_pixel(network), memory):
        return max(-(-extent // network.multiple) * network.multiple, smallest)
    side = _side(network, bytes_per_pixel(network), memory) // network.multiple * network.multiple
    if side < min(smallest, extent):
        least = math.ceil(tile_bytes(network, smallest) / 1e6)
        rule = f"must leave {least} MB for a tile of {smallest}x{smallest} pixels, receptive radius {network.halo}"
        raise ArgumentError("max_memory", rule, f"{memory / 1e6:.0f}MB", "Raise --max-memory.")
    return min(side, max(LARGEST_TILE, smallest))
