"""A loaded model on images of any size: in one piece, or in tiles that give what one piece would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from dl_techniques.engines.engine import Engine
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.tiling import Tile, plan_tiles

TILE = 512  # height and width of tiles where nothing is planned, in pixels
CONVERGED = 1e-4  # of a channel's share of the response; moves an output by a tenth of that or less


OnTile = Callable[[int, int], object]


def ignore(done: int, total: int) -> None:
    """Do nothing with the number of tiles done and their total."""


class Source(Protocol):
    """An image that can be read in parts: an array is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, window: Any, /) -> Any: ...


@dataclass(frozen=True)
class Pass:
    """One pass over all tiles, and the largest change of a channel's share of the response since the last one."""

    tiles: int
    change: float | None = None


class Network:
    """A model on images of any size.

    A network of bounded receptive field is exact in tiles that overlap by that field. V2's response normalization pools
    over the whole image: with `global_stats="exact"` passes over all tiles add up its statistics, each pass using those
    of the pass before, until they converge. Each normalization depends only on earlier ones, so one pass more than
    there are normalizations is exact; usually three are enough. With `"tile"` each tile is normalized separately, over
    as many pixels as a training patch has (compare Chu et al. 2022, Improving Image Restoration by Revisiting Global
    Information Aggregation).

    Args:
        engine: The model. An artifact that pools over the image, is of one size, or whose card does not say how to
            tile it is applied to whole images only.
        global_stats: Of V2 models.
        patch: Height and width of the windows of `"tile"`, in pixels.
    """

    def __init__(
        self,
        engine: Engine,
        global_stats: Literal["exact", "tile"] = "exact",
        patch: int | None = None,
    ) -> None:
        self.engine = _any_size(engine)
        self.halo, self.multiple, self.pools = 0, 1, False
        model = self.engine.model
        if model is not None:
            from dl_techniques.models.convunext.receptive import pools_image, receptive_radius

            self.halo, self.multiple, self.pools = receptive_radius(model), 2**model.depth, pools_image(model)
        elif self.engine.tiling is not None:
            self.halo, self.multiple = self.engine.tiling.halo, self.engine.tiling.multiple
            self.pools = bool(self.engine.tiling.sums_of_squares)
        self.tiled_by_patch = self.pools and global_stats == "tile"
        if self.tiled_by_patch:
            if patch is None:
                raise ArgumentError("global_stats", "must be exact: the model's card does not name its patch", "tile")
        self._patch = patch
        self._function = self.engine.tile_function  # of tiles with statistics; that of Keras is made when first needed

    @property
    def whole_images_only(self) -> bool:
        """Whether the model takes whole images only."""
        return self.engine.model is None and (self.engine.tiling is None or self.engine.tiling.whole_images_only)

    @property
    def outputs(self) -> int:
        """Channels of the output; 1 where they are not known."""
        known = self.engine.model.output_channels if self.engine.model is not None else None
        return known or (self.engine.tiling.outputs if self.engine.tiling is not None else 1)

    @property
    def smallest_tile(self) -> int | None:
        """The smallest tile worth it, a ninth of which is used; `None` for a model that takes whole images only."""
        if self.whole_images_only:
            return None
        inner = self._patch if self.tiled_by_patch and self._patch is not None else self.halo
        return min_tile(self.halo, self.multiple, inner)

    def apply(self, x: np.ndarray, tile: int = TILE, on_tile: OnTile = ignore) -> tuple[np.ndarray, tuple[Pass, ...]]:
        """Return the finest output for an image, and the passes that it took.

        Args:
            x: `(height, width, channels)`, float32, as the model wants it.
            tile: Largest height and width that are computed at once, in pixels.
            on_tile: Called with the number of tiles done and their total after each.
        """
        result: np.ndarray | None = None

        def receive(part: Tile, output: np.ndarray, number: int) -> None:
            nonlocal result
            if result is None:
                result = np.empty((*x.shape[:2], output.shape[2]), output.dtype)
            result[part.write] = output

        passes = self.scan(x, tile, receive, on_tile)
        if result is None:
            raise ArgumentError("image", "must have at least one pixel", x.shape)
        return result, passes

    def scan(
        self,
        source: Source,
        tile: int,
        receive: Callable[[Tile, np.ndarray, int], object],
        on_tile: OnTile = ignore,
    ) -> tuple[Pass, ...]:
        """Compute an image tile by tile, row by row, and return the passes that it took.

        Args:
            source: The image, as the model wants it.
            tile: Largest height and width that are computed at once, in pixels.
            receive: Called with a tile, the finest output of what it writes, and the number of the pass, from 1; later
                passes replace what earlier ones gave.
            on_tile: Called with the number of tiles done and their total in a pass after each.
        """
        height, width = source.shape[:2]
        if self.whole_images_only:
            parts = list(plan_tiles(height, width, max(height, width), 0, 1))
        else:
            parts = list(plan_tiles(height, width, tile, self.halo, self.multiple))
        if len(parts) > 1 and self.pools:
            return self._passes(source, parts, receive, on_tile)
        for number, part in enumerate(parts, start=1):
            receive(part, self.engine.function(source[part.read][None])[0][part.keep], 1)
            on_tile(number, len(parts))
        return (Pass(len(parts)),)

    def _passes(self, source: Source, parts: list[Tile], receive, on_tile) -> tuple[Pass, ...]:
        sizes, model = list(self.engine.tiling.sums_of_squares if self.engine.tiling else ()), self.engine.model
        if model is not None:
            from dl_techniques.models.convunext.tiles import sum_sizes, tile_function

            sizes = sum_sizes(model)
            self._function = self._function or tile_function(model)
        function: Any = self._function
        sums = np.full(sum(sizes), -1, "float32")  # unknown
        done: list[Pass] = []
        for number in range(1, 2 if self.tiled_by_patch else len(sizes) + 2):
            total = np.zeros(sum(sizes))
            for count, part in enumerate(parts, start=1):
                crop = source[part.read]
                valid_mask = np.zeros(crop.shape[:2], "float32")
                valid_mask[part.keep] = 1
                output, tile_sums = function(crop, valid_mask, sums)
                total += tile_sums
                receive(part, output[part.keep], number)
                on_tile(count, len(parts))
            change = float(np.abs(_shares(total, sizes) - _shares(sums, sizes)).max())
            done.append(Pass(len(parts), None if number == 1 else change))
            sums = total.astype("float32")
            if number > 1 and change <= CONVERGED:
                break
        return tuple(done)


def min_tile(halo: int, multiple: int, inner: int) -> int:
    """Return the side of the smallest tile whose inner part, without the halo, has this side; in pixels."""
    return 2 * (-(-halo // multiple) * multiple) + max(inner // multiple, 1) * multiple


def _shares(sums: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Return the share of each channel's response in the mean response of its normalization, from sums of squares."""
    parts = np.split(np.sqrt(np.maximum(sums, 0.0)), np.cumsum(sizes)[:-1])
    return np.concatenate([part / (part.mean() or 1.0) for part in parts])


def _any_size(engine: Engine) -> Engine:
    """Return the same model for images of any size, where its graph is known."""
    if engine.model is None or engine.size == (None, None):
        return engine
    from dl_techniques.models.convunext.function import keras_function
    from dl_techniques.models.convunext.model import create_inference_model_from_training_model

    shape = (None, None, engine.model.input_channels)
    model = create_inference_model_from_training_model(engine.model, input_shape=shape)
    return replace(engine, model=model, function=keras_function(model), size=(None, None))
