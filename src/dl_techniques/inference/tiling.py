"""Large images in tiles, with exactly the result of the whole image in one piece.

NumPy alone. A network whose output at a pixel depends on inputs at most `halo` pixels away gives the same value from
any crop that holds them all, if the crop begins where the network's pooling windows begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dl_techniques.errors import ArgumentError


@dataclass(frozen=True)
class Tile:
    """A crop to compute and the part of it to keep, rows then columns.

    Attributes:
        read: Slices of the image to put in.
        write: Slices of the result to fill.
        keep: Slices of the crop's output that fill them.
    """

    read: tuple[slice, slice]
    write: tuple[slice, slice]
    keep: tuple[slice, slice]


def plan_tiles(height: int, width: int, tile: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Cover an image with tiles.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        tile: Height and width of the crops, in pixels; an image no larger is one tile.
        halo: Pixels that a result depends on to each side.
        multiple: Crops begin at multiples of this: 2 to the number of times that the network halves its input.

    Raises:
        ArgumentError: The tile has no room for what it should keep.
    """
    rows, columns = (list(_plan_axis(extent, tile, halo, multiple)) for extent in (height, width))
    for row in rows:
        for column in columns:
            read, write, keep = zip(row, column, strict=True)
            yield Tile(read, write, keep)


def _plan_axis(extent: int, tile: int, halo: int, multiple: int) -> Iterator[tuple[slice, slice, slice]]:
    if extent <= tile:
        yield slice(0, extent), slice(0, extent), slice(0, extent)
        return
    halo = -(-halo // multiple) * multiple
    step = (tile - 2 * halo) // multiple * multiple
    if step < multiple:
        raise ArgumentError("tile", f"must be at least {2 * halo + multiple} for a halo of {halo} pixels", tile)
    for begin in range(0, extent, step):
        end = min(begin + step, extent)
        first, last = max(begin - halo, 0), min(end + halo, extent)
        yield slice(first, last), slice(begin, end), slice(begin - first, end - first)
