"""Loads a model of any kind as one function from array to array."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.card import ModelCard, check_artifact, read_card
from dl_techniques.engines.cache import Conversion
from dl_techniques.engines.engine import Engine, Graph, Tiling, check_image, first_words
from dl_techniques.engines.formats import CONVERTED, ArtifactFormat, EngineName, Precision
from dl_techniques.engines.isolation import load_isolated
from dl_techniques.engines.keras import load_keras
from dl_techniques.engines.selection import EngineSelection, Model, select_engine
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.models.convunext.presets import check_preset

if TYPE_CHECKING:
    from dl_techniques.models.convunext.tiles import TileFunction

TRUST = "Add --trust (in Python: trust=True) if you trust whoever made it; it then runs in a process of its own."
SAMPLE = (128, 160)  # height and width of the noise on which a precision is measured


def load_engine(
    source: Model, engine: EngineName | None = None, precision: Precision = "float32", trust: bool = False
) -> Engine:
    """Load a model.

    Args:
        source: A `.keras` file, a run's folder, a preset's name or folder, or an exported file or folder of one of
            `formats.FORMATS`; or what `select_engine` made of one, engine and precision settled.
        engine: What runs it. `"openvino"` and `"onnxruntime"` run a Keras model converted, once, in the user's cache;
            `"auto"` takes the fastest that is installed. Keras, and exports in their own runtime, if not given.
        precision: What OpenVINO computes in.
        trust: Whether exports are loaded that carry no digest or have operations that exports of this package do not
            have; they run in a process of their own, with the rights of this one.

    Raises:
        FileError: The file is broken, nobody vouches for it, or it holds another kind of model or cannot be converted.
        ArgumentError: There is no such file or preset, or engine or precision does not fit.
    """
    selection = source if isinstance(source, EngineSelection) else select_engine(source, engine, precision, trust)
    path = selection.path
    try:
        if selection.conversion is not None:
            if path.is_dir():
                check_preset(path)  # its config was converted, but its card is read again
            return _load_conversion(selection, selection.conversion)
        if selection.artifact_format is not None:
            return _load_artifact(selection, selection.artifact_format)
        return load_keras(path)
    except ModuleNotFoundError as error:
        remedy = f"Install it: pip install {error.name}"
        raise FileError(str(path), f"needs the module {error.name!r}, which is not installed.", remedy) from error
    except ConvUNextError:
        raise
    except Exception as error:  # the errors of runtimes have no class in common
        raise FileError(str(path), f"cannot be loaded: {first_words(error)}.", "Get it again.") from error


def precision_deviation(selection: EngineSelection) -> float:
    """Return how far a precision is from float32 on noise: the largest difference by the range of the output."""
    exact, other = (load_engine(replace(selection, precision=name)) for name in ("float32", selection.precision))
    x = np.random.default_rng(0).uniform(size=(1, *exact.fit(SAMPLE), exact.channels or 1)).astype("float32")
    y, z = exact.function(x), other.function(x)
    return float(np.abs(z - y).max() / (np.ptp(y) or 1.0))


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


def _load_artifact(selection: EngineSelection, form: ArtifactFormat) -> Engine:
    """Return the engine of an artifact of images, or of a V2 artifact for tiles, which also takes statistics."""
    path = selection.path
    card = read_card(path)
    tiling, largest = _stated(path, card)
    graph = _open_artifact(selection, form, card)
    _, height, width, channels = graph.shape if len(graph.shape) == 4 else (None,) * 4
    if not channels:
        raise ValueError(f"it takes inputs of shape {tuple(graph.shape)}, not (batch, height, width, channels)")

    def compute(*arrays: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = graph.function(*arrays)
            check_image(outputs, arrays[0], tiling and tiling.outputs)
        except Exception as error:  # the errors of runtimes have no class in common
            reason = f"cannot compute an image of shape {arrays[0].shape[1:]}: {first_words(error)}."
            raise FileError(str(path), reason, "Export it again, or get another.") from error
        return outputs

    engine = Engine(lambda batch: compute(batch)[0], channels, path.name, path, None, (height, width), tiling, largest)
    engine = replace(engine, runtime=form.runtime)
    if tiling is None or tiling.whole_images_only or not tiling.sums_of_squares:
        return engine
    count = sum(tiling.sums_of_squares)

    def compute_images(batch: np.ndarray) -> np.ndarray:
        """Compute images as they are: all pixels are valid, and nothing is known from outside."""
        valid_mask, unknown = np.ones((1, *batch.shape[1:3], 1), "float32"), np.full((1, count), -1, "float32")
        return np.concatenate([compute(image[None], valid_mask, unknown)[0] for image in batch])

    return replace(engine, function=compute_images, tile_function=_tile_function(lambda: Graph(graph.shape, compute)))


def _open_artifact(selection: EngineSelection, form: ArtifactFormat, card: ModelCard) -> Graph:
    """Return the graph of an artifact: of one that nobody vouches for only if the user trusts it, and then apart."""
    path, reason = selection.path, "carries no digest in its card, so nothing says that it is what was exported."
    if check_artifact(path, card, form.companions):
        if not (operation := form.foreign_operation(path)):
            return form.load(path, selection.precision)
        reason = f"has the operation {operation}, which no export of this package has: it may do more than compute."
    if not selection.trust:
        raise FileError(str(path), reason, TRUST)
    return load_isolated(form, path, selection.precision)


def _stated(path: Path, card: ModelCard) -> tuple[Tiling | None, float | None]:
    """Return an artifact's tiling and the largest intensity of its 8-bit integers, as its card states them."""
    stated, integers = card.exported.get("tiling"), card.exported.get("int8")
    try:
        tiling = None if stated is None else Tiling.from_dict(stated)
        largest = None if integers is None else float(integers["largest"])
        if largest is not None and not 0 < largest < np.inf:
            raise ValueError(largest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"has a card whose tiling is {stated!r} and int8 {integers!r}."
        raise FileError(str(path), reason, "Export it again.") from error
    return tiling, largest
