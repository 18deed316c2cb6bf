"""A loaded model as one function from array to array, whatever runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dl_techniques.errors import ArgumentError

if TYPE_CHECKING:
    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.models.convunext.tiles import TileFunction

Size = tuple[int | None, int | None]
LONGEST = 300  # characters of what a library says


class Graph(NamedTuple):
    """A network in a file, opened: shape of the first input, `None` for sizes left open, and a function of arrays."""

    shape: list[int | None]
    function: Callable[..., list[np.ndarray]]


def check_image(outputs: Sequence[np.ndarray], image: np.ndarray, channels: int | None = None) -> None:
    """Raise `ValueError` unless the first output of a graph is an image of the size of its first input.

    Args:
        outputs: Of the graph.
        image: The input, `(batch, height, width, channels)`.
        channels: Of the output, `None` for any.
    """
    first = np.asarray(outputs[0] if outputs else 0.0)
    fits = first.ndim == 4 and first.shape[:3] == image.shape[:3] and first.shape[3] > 0 and first.dtype.kind in "fi"
    if not fits or channels not in (None, first.shape[3]):
        wanted = "" if channels is None else f" and of {channels} channels"
        given = f"{first.dtype} of shape {first.shape} for {image.shape}"
        raise ValueError(f"it does not return an image of the size of its input{wanted}: {given}")


def first_words(error: BaseException) -> str:
    """Return what an error says, up to its first line that announces no other."""
    words: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if not line.startswith("Exception from "):  # where in OpenVINO's code
            words.append(line)
            if not line.endswith(":"):
                break
    return " ".join(words)[:LONGEST].rstrip(".") or type(error).__name__


@dataclass(frozen=True)
class Tiling:
    """What a network's graph tells of its application to parts of images, for where there is only an artifact.

    Attributes:
        halo: Pixels that an output depends on to each side.
        multiple: Parts that shall give what the complete image gives begin at multiples of this many pixels.
        bytes_per_pixel: Memory for each pixel of a part, without the weights.
        outputs: Channels of the output.
        whole_images_only: Whether an artifact cannot be applied to parts all the same: it is of one size, or pools over
            the image.
        sums_of_squares: Channels of every response normalization over the image, of a V2 model.
    """

    halo: int
    multiple: int
    bytes_per_pixel: int
    outputs: int
    whole_images_only: bool = False
    sums_of_squares: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tiling:
        """Return what a card states; version 0.1 called some of it otherwise.

        Raises:
            TypeError: Something is missing or unknown.
            ValueError: A number is impossible.
        """
        values = {OLD_NAMES.get(name, name): value for name, value in dict(values).items() if name not in UNUSED}
        tiling = cls(**{**values, "sums_of_squares": tuple(values.get("sums_of_squares", ()))})
        counts = (tiling.multiple, tiling.bytes_per_pixel, tiling.outputs, *tiling.sums_of_squares)
        if not all(isinstance(count, int) for count in (tiling.halo, *counts)) or min(tiling.halo + 1, *counts) < 1:
            raise ValueError(f"impossible tiling {values!r}")
        return tiling


OLD_NAMES = {"whole": "whole_images_only", "energies": "sums_of_squares"}
UNUSED = ("whole_bytes_per_pixel",)


@dataclass(frozen=True)
class Engine:
    """A loaded model.

    Attributes:
        function: Maps `(batch, height, width, channels)` float32 to its first output, float32, or int32 if an
            artifact returns classes.
        channels: Channels of the input.
        source: What was loaded.
        path: The file or folder, where the card lies in or beside.
        model: The Keras model, `None` for exported files.
        size: Height and width that images must have, each `None` if any will do.
        tiling: How an artifact is applied to parts of images, `None` where its card does not tell: then only to
            complete ones, in memory that is not known.
        largest: Largest intensity that the 8-bit integers of an artifact were calibrated for; `None` if it has none.
        use_bias: Whether the network has additive parameters, `None` where that is not known.
        tile_function: A V2 model that was converted, or exported for tiles, as `models.convunext.tiles.tile_function`
            returns it.
        runtime: What it runs on.
    """

    function: Function
    channels: int
    source: str
    path: Path
    model: ConvUNextModel | None = None
    size: Size = (None, None)
    tiling: Tiling | None = None
    largest: float | None = None
    use_bias: bool | None = None
    tile_function: TileFunction | None = None
    runtime: str = "keras"

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return a height and a width that the model takes: its own where they are fixed, otherwise those given."""
        return self.size[0] or size[0], self.size[1] or size[1]

    def check_size(self, pixels: np.ndarray) -> None:
        """Raise `ArgumentError` for `(height, width, channels)` of a size that an artifact does not take."""
        if self.model is None and self.fit(pixels.shape[:2]) != pixels.shape[:2]:
            rule = f"must be of {self.size[0]}x{self.size[1]} pixels for {self.source}"
            raise ArgumentError("pixels", rule, pixels.shape)


def compute_threads() -> int:
    """Return how many threads a runtime may compute with: OMP_NUM_THREADS, or 0, all cores, if not set."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() else 0
