"""Loads a model of any kind as one function from array to array."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.card import check_artifact, read_card
from dl_techniques.engines.cache import Conversion
from dl_techniques.engines.engine import Engine, Graph, Tiling
from dl_techniques.engines.formats import CONVERTED, ArtifactFormat, EngineName, Precision
from dl_techniques.engines.keras import load_keras
from dl_techniques.engines.selection import EngineSelection, Model, select_engine
from dl_techniques.errors import ConvUNextError, FileError

if TYPE_CHECKING:
    from dl_techniques.models.convunext.tiles import TileFunction

SAMPLE = (128, 160)  # height and width of the noise on which a precision is measured


def load_engine(source: Model, engine: EngineName | None = None, precision: Precision = "float32") -> Engine:
    """Load a model.

    Args:
        source: A `.keras` file, a run's folder, a preset's name or folder, or an exported file or folder of one of
            `formats.FORMATS`; or what `select_engine` made of one, engine and precision settled.
        engine: What runs it. `"openvino"` and `"onnxruntime"` run a Keras model converted, once, in the user's cache;
            `"auto"` takes the fastest that is installed. Keras, and exports in their own runtime, if not given.
        precision: What OpenVINO computes in.

    Raises:
        FileError: The file is broken, holds another kind of model or cannot be converted.
        ArgumentError: There is no such file or preset, or engine or precision does not fit.
    """
    selection = source if isinstance(source, EngineSelection) else select_engine(source, engine, precision)
    path = selection.path
    try:
        if selection.conversion is not None:
            return _load_conversion(selection, selection.conversion)
        if selection.artifact_format is not None:
            return _load_artifact(path, selection.artifact_format, selection.precision)
        return load_keras(path)
    except ModuleNotFoundError as error:
        remedy = f"Install it: pip install {error.name}"
        raise FileError(str(path), f"needs the module {error.name!r}, which is not installed.", remedy) from error
    except ConvUNextError:
        raise
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(str(path), f"cannot be loaded: {_first_words(error)}.", "Get it again.") from error


def precision_deviation(selection: EngineSelection) -> float:
    """Return how far a precision is from float32 on noise: the largest difference by the range of the output."""
    exact, other = (load_engine(replace(selection, precision=name)) for name in ("float32", selection.precision))
    x = np.random.default_rng(0).uniform(size=(1, *exact.fit(SAMPLE), exact.channels or 1)).astype("float32")
    y, z = exact.function(x), other.function(x)
    return float(np.abs(z - y).max() / (np.ptp(y) or 1.0))


def _first_words(error: Exception) -> str:
    """Return what an error says, up to its first line that announces no other."""
    words: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if not line.startswith("Exception from "):  # where in OpenVINO's code
            words.append(line)
            if not line.endswith(":"):
                break
    return " ".join(words).rstrip(".") or type(error).__name__


def _load_conversion(selection: EngineSelection, conversion: Conversion) -> Engine:
    path, form, facts = selection.path, CONVERTED[selection.runtime], conversion.facts

    @functools.cache
    def graph(name: str) -> Graph:
        return form.load(conversion.folder / f"{name}{form.suffix}", selection.precision)

    network, tiling = graph("network").function, Tiling.from_dict(facts["tiling"])
    return Engine(
        lambda batch: network(batch)[0],
        facts["channels"],
        f"preset {path.name}" if path.is_dir() else path.name,
        path,
        tiling=tiling,
        use_bias=facts["use_bias"],
        tile_function=_tile_function(lambda: graph("tiles")) if tiling.sums_of_squares else None,
        runtime=selection.runtime,
    )


def _tile_function(graph: Callable[[], Graph]) -> TileFunction:
    """Return the function of one tile that a graph of batches of tiles, valid masks and sums of squares makes."""

    def call(tile: np.ndarray, valid_mask: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output, found = graph().function(tile[None], valid_mask[None, ..., None], sums[None])
        return output[0], found[0]

    return call


def _load_artifact(path: Path, form: ArtifactFormat, precision: Precision) -> Engine:
    """Return the engine of an artifact of images, or of a V2 artifact for tiles, which also takes statistics."""
    card = read_card(path)
    check_artifact(path, card, form.companions)
    (_, height, width, channels), function = graph = form.load(path, precision)
    stated, integers = card.exported.get("tiling"), card.exported.get("int8")
    try:
        tiling = None if stated is None else Tiling.from_dict(stated)
        largest = None if integers is None else float(integers["largest"])
        if largest is not None and largest <= 0:
            raise ValueError(largest)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"has a card whose tiling is {stated!r} and int8 {integers!r}."
        raise FileError(str(path), reason, "Export it again.") from error
    engine = Engine(lambda batch: function(batch)[0], channels, path.name, path, None, (height, width), tiling, largest)
    engine = replace(engine, runtime=form.runtime)
    if tiling is None or tiling.whole_images_only or not tiling.sums_of_squares:
        return engine
    count = sum(tiling.sums_of_squares)

    def compute_images(batch: np.ndarray) -> np.ndarray:
        """Compute images as they are: all pixels are valid, and nothing is known from outside."""
        valid_mask, unknown = np.ones((1, *batch.shape[1:3], 1), "float32"), np.full((1, count), -1, "float32")
        return np.concatenate([function(image[None], valid_mask, unknown)[0] for image in batch])

    return replace(engine, function=compute_images, tile_function=_tile_function(lambda: graph))
