"""A trained model as a function from image to result, whatever its task, in bounded memory."""

from __future__ import annotations

import itertools

import numpy as np

from dl_techniques.card import read_card
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.selection import Model
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.memory import array_bytes, check_whole_image, network_bytes, parse_memory, plan_tile
from dl_techniques.inference.network import Network, OnTile, ignore
from dl_techniques.inference.settings import GlobalStats
from dl_techniques.inference.tta import symmetric_moments
from dl_techniques.tasks.base import Prediction, Statistics
from dl_techniques.tasks.registry import task_of

Shape = tuple[int, ...]


class Predictor:
    """A trained model as a function from image to result, whatever its task, in bounded memory.

    Nothing in it changes from image to image: threads may share it.

    Args:
        model: As `load_engine` takes it, or what it returned.
        tta: Average over this many symmetries of the square: 1, 2, 4 or 8.
        global_stats: How V2 models are applied to images of several tiles, `"exact"`, `"tile"` or `"auto"`; see
            `Network`.
        max_memory: What arrays and network may take beside the runtime, such as `"2GB"`; `"auto"` is three quarters of
            what is free.
        tile: Largest height and width that are computed at once, in pixels; by the memory if `None`.
        engine: What computes, as `load_engine` takes it.
        precision: What OpenVINO computes in.
        trust: Whether exports are loaded that nobody vouches for, as `load_engine` takes it.
        task: Name of the task where the model's card names none; that of bias-free models is `"restore"`.

    Raises:
        FileError: The model is broken, or its card does not say what it is for.
        ArgumentError: There is no such model, or a setting does not fit it.

    Example:
        >>> prediction = Predictor("run/model.keras")(pixels)
    """

    def __init__(
        self,
        model: Model | Engine,
        tta: int = 1,
        global_stats: GlobalStats = "auto",
        max_memory: str = "2GB",
        tile: int | None = None,
        engine: EngineName | None = None,
        precision: Precision = "float32",
        task: str | None = None,
        trust: bool = False,
    ) -> None:
        self.engine = model if isinstance(model, Engine) else load_engine(model, engine, precision, trust)
        self.card = read_card(self.engine.path)
        bias_free = self.engine.use_bias is False
        self.task = task_of(self.card, str(self.engine.path), task or ("restore" if bias_free else None))
        if tta > 1 and self.task.decoded:
            raise ArgumentError("tta", f"must be 1: {self.engine.source} returns classes, which have no mean", tta)
        self.tta, self.tile = tta, tile
        self.memory = parse_memory(max_memory)
        self.network = Network(self.engine, "tile" if global_stats == "tile" else "exact", self.card.patch)
        plan_tile(self.network, self.memory)  # refuse at once what no image will fit

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return self.engine.channels

    def __call__(self, pixels: np.ndarray, on_tile: OnTile = ignore, valid: np.ndarray | None = None) -> Prediction:
        """Return what the model makes of an image.

        Pixels without data do not count in statistics. The network sees in their place the nearest pixel of their row
        with data, so that pixels closer to them than the receptive radius depend on a guess, but never on a marker.

        Args:
            pixels: `(height, width, channels)`, integers or floats, as they come from a file. Samples that are NaN or
                infinite stay so in restored images.
            on_tile: Called with the number of tiles done and their total after each.
            valid: Which samples hold data, bool, of the shape of `pixels`; `None` where all do. Others stay as they are
                in restored images, and become `IGNORED` in masks.

        Raises:
            ArgumentError: The image has other channels than the model, or samples that are not finite where they
                cannot be left as they are, or it does not fit the memory.
        """
        tile = self.plan(pixels.shape)
        finite = self._check(pixels, valid)
        known = pixels if finite.all() else pixels[finite]
        scaling = self.task.scaling(Statistics.of(known, self.task.standardizes), self.engine.largest)
        filled = pixels if finite.all() else fill(pixels, finite)
        scaled = scaling.apply(filled)
        planes = [scaled[..., c : c + 1] for c in range(scaled.shape[2])] if self._per_colour else [scaled]
        total, rounds, passes = len(planes) * self.tta, itertools.count(), ()

        def apply(plane: np.ndarray) -> np.ndarray:
            nonlocal passes
            before = next(rounds)
            output, passes = self.network.apply(
                plane, tile, lambda done, tiles: on_tile(before * tiles + done, total * tiles)
            )
            return output

        means, deviations = zip(*(symmetric_moments(apply, plane, self.tta) for plane in planes), strict=True)
        output = np.concatenate(means, axis=-1)
        if not np.isfinite(output).all():
            raise ArgumentError("model", "must return finite values for finite images", self.engine.source)
        result = self.task.decode(output, scaling, pixels.dtype)
        if not finite.all():
            result = self.task.with_holes(result, pixels, finite)
        unit = scaling.divisor if self.task.restores else 1.0
        uncertainty = (unit * np.concatenate(deviations, axis=-1).max(axis=2, keepdims=True)).astype("float32")
        probabilities = None if self.task.restores or output.dtype.kind != "f" else output
        return Prediction(result, probabilities, uncertainty, passes)

    def plan(self, shape: Shape) -> int:
        """Return the side of tiles so that an image of `(height, width, channels)` and the network fit the memory.

        Raises:
            ArgumentError: They cannot.
        """
        arrays, size = self._arrays(shape), (shape[0], shape[1])
        check_whole_image(self.network, self.memory - arrays, size)
        if not self.holds(shape):
            rule = f"must hold arrays of {arrays / 1e6:.0f} MB for {size[1]}x{size[0]} pixels"
            raise ArgumentError("max_memory", rule, f"{self.memory / 1e6:.0f}MB", "Raise --max-memory.")
        smallest = self.network.smallest_tile
        if self.network.tiled_by_patch and smallest is not None:
            return smallest
        return self.tile or plan_tile(self.network, self.memory - arrays, max(size))

    def holds(self, shape: Shape) -> bool:
        """Return whether an image of `(height, width, channels)`, its results and one tile stay within the memory."""
        return self._arrays(shape) + network_bytes(self.network, (shape[0], shape[1])) <= self.memory

    def _arrays(self, shape: Shape) -> int:
        planes = shape[2] if self._per_colour else 1
        return array_bytes(self.network, (shape[0], shape[1]), self.tta, planes, shape[2])

    @property
    def _per_colour(self) -> bool:
        return self.task.restores and self.channels == 1

    def _check(self, pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
        """Return where samples are finite and hold data; raise `ArgumentError` for an image that does not fit."""
        if pixels.shape[2] != self.channels and not self._per_colour:
            raise ArgumentError("pixels", f"must have {self.channels} channels for {self.engine.source}", pixels.shape)
        self.engine.check_size(pixels)
        finite = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
        given = finite if valid is None else finite | ~valid
        if not self.task.restores and (bad := int(given.size - np.count_nonzero(given))):
            raise ArgumentError("pixels", "must be finite; NaN or infinite samples", bad)
        finite = finite if valid is None else finite & valid
        if not finite.any():
            raise ArgumentError("pixels", "must have at least one finite sample that holds data", pixels.shape)
        return finite


def fill(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return an image whose samples without data are those of the nearest pixel with data in their row.

    Rows without any are those of the nearest row with some.

    Args:
        pixels: `(height, width, channels)`.
        valid: Bool, of the same shape; true somewhere.
    """
    result = pixels.copy()
    columns = np.arange(pixels.shape[1])
    for channel in range(pixels.shape[2]):
        plane, known = result[..., channel], valid[..., channel]
        rows = np.flatnonzero(known.any(axis=1))
        if len(rows) == 0:
            plane[:] = pixels[valid].mean()
            continue
        for row in rows[~known[rows].all(axis=1)]:
            plane[row] = plane[row, _nearest(np.flatnonzero(known[row]), columns)]
        plane[:] = plane[_nearest(rows, np.arange(len(plane)))]
    return result


def _nearest(known: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return for each place the nearest of the sorted, known places."""
    after = np.searchsorted(known, places).clip(0, len(known) - 1)
    before = (after - 1).clip(0)
    return np.where(np.abs(known[before] - places) <= np.abs(known[after] - places), known[before], known[after])
