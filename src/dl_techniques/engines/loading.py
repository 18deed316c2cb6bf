"""A model of any kind as one function from array to array."""

from __future__ import annotations

import functools
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.card import check_artifact, read_card
from dl_techniques.engines.cache import Conversion
from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.engines.runtimes import ArraysFunction, ONNXFunction, OpenVINOFunction
from dl_techniques.engines.selection import Choice, Model, choose_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError

if TYPE_CHECKING:
    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.models.convunext.tiles import TileFunction

Size = tuple[int | None, int | None]


@dataclass(frozen=True)
class Tiling:
    """What a model's graph tells of its application to parts of images, kept for where there is only an artifact.

    Attributes:
        halo: Pixels that an output depends on to each side.
        multiple: Parts that shall give what the whole image gives begin at multiples of this many pixels.
        bytes_per_pixel: Memory for each pixel of a part, without the weights.
        outputs: Channels of the output.
        whole: Whether an artifact takes whole images only all the same: it is of one size, or pools over the image.
        energies: Channels of every response normalization over the whole image, of a V2 model.
        whole_bytes_per_pixel: Memory for each pixel of an image in one piece, if that takes another amount.
    """

    halo: int
    multiple: int
    bytes_per_pixel: int
    outputs: int
    whole: bool = False
    energies: tuple[int, ...] = ()
    whole_bytes_per_pixel: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "energies", tuple(self.energies))  # a list, where it comes from a card


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
        tiling: How an artifact is applied to parts of images, `None` where its card does not tell: then only to whole
            ones, in memory that is not known.
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


def load_engine(source: Model, engine: EngineName | None = None, precision: Precision = "float32") -> Engine:
    """Load a model.

    Args:
        source: A `.keras` file, a run's folder, a preset's name or folder, or an exported `.onnx`, `.xml` (OpenVINO),
            `.tflite` file or SavedModel folder; or what `choose_engine` made of one, engine and precision settled.
        engine: What runs it. `"openvino"` and `"onnxruntime"` run a Keras model converted, once, in the user's cache;
            `"auto"` takes the fastest that is installed. Keras, and exports in their own runtime, if not given.
        precision: What OpenVINO computes in.

    Raises:
        FileError: The file is broken, holds another kind of model or cannot be converted.
        ArgumentError: There is no such file or preset, or engine or precision does not fit.
    """
    choice = source if isinstance(source, Choice) else choose_engine(source, engine, precision)
    path = choice.path
    if choice.conversion is not None:
        return _load_converted(path, choice.runtime, choice.conversion, choice.precision)
    if choice.runtime != "keras":
        check_artifact(path, read_card(path))
    if path.is_dir():
        return _load_saved_model(path) if choice.runtime == "tensorflow" else _load_preset(path)
    try:
        if path.suffix == ".xml":
            return _load_openvino(path, choice.precision)
        return {".keras": _load_keras, ".onnx": _load_onnx, ".tflite": _load_litert}[path.suffix](path)
    except ModuleNotFoundError as error:
        remedy = f"Install it: pip install {error.name}"
        raise FileError(str(path), f"needs the module {error.name!r}, which is not installed.", remedy) from error
    except (ValueError, OSError, RuntimeError, TypeError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, ConvUNextError):
            raise
        raise FileError(str(path), f"cannot be loaded: {_first_words(error)}.", "Get it again.") from error


def _first_words(error: Exception) -> str:
    """Return what an error says, up to its first line that announces no other."""
    words: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if not line.startswith("Exception from "):  # where in OpenVINO's code
            words.append(line)
            if not line.endswith(":"):
                break
    return " ".join(words).rstrip(".") or type(error).__name__


def _load_converted(path: Path, runtime: str, conversion: Conversion, precision: Precision) -> Engine:
    facts = conversion.facts

    def load(name: str) -> ArraysFunction:
        if runtime == "openvino":
            return OpenVINOFunction(conversion.folder / f"{name}.xml", precision)
        return ONNXFunction(conversion.folder / f"{name}.onnx")

    network = load("network")

    @functools.cache
    def tiles() -> ArraysFunction:
        return load("tiles")

    tiling = Tiling(**facts["tiling"])
    return Engine(
        lambda batch: network(batch)[0],
        facts["channels"],
        _name(path),
        path,
        tiling=tiling,
        use_bias=facts["use_bias"],
        tile_function=_tile_function(lambda *arrays: tiles()(*arrays)) if tiling.energies else None,
        runtime=runtime,
    )


def _tile_function(network: ArraysFunction) -> TileFunction:
    """Return a network of batches of tiles, kept pixels and energies as a function of one tile."""

    def call(tile: np.ndarray, kept: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output, found = network(tile[None], kept[None, ..., None], energies[None])
        return output[0], found[0]

    return call


def _name(path: Path) -> str:
    return f"preset {path.name}" if path.is_dir() else path.name


def _load_preset(folder: Path) -> Engine:
    from dl_techniques.models.convunext.model import ConvUNextModel

    return _keras_engine(ConvUNextModel.from_preset(folder), folder)


def _load_keras(path: Path) -> Engine:
    import keras

    import dl_techniques.models.convunext.model  # noqa: F401 - registers the model
    from dl_techniques.models.convunext.archive import check_archive

    config = check_archive(path)
    try:
        model: Any = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
    except ArgumentError as error:
        reason = f"cannot be built: `{error.subject}` {error.reason}"
        raise FileError(str(path), reason, error.remedy or "Get it again.") from error
    model.load_weights(path)  # looks at them first: Keras leaves what it does not find as it was drawn
    return _keras_engine(model, path)


def _keras_engine(model: ConvUNextModel, path: Path) -> Engine:
    from dl_techniques.models.convunext.function import keras_function

    height, width, channels = model.input_shape
    function = keras_function(model)
    return Engine(function, channels, _name(path), path, model, (height, width), use_bias=model.use_bias)


def _load_onnx(path: Path) -> Engine:
    return _engine_of_arrays(ONNXFunction(path), path, "onnxruntime")


def _load_openvino(path: Path, precision: Precision) -> Engine:
    return _engine_of_arrays(OpenVINOFunction(path, precision), path, "openvino")


def _engine_of_arrays(network: ONNXFunction | OpenVINOFunction, path: Path, runtime: str) -> Engine:
    """Return the engine of an artifact of images, or of a V2 artifact for tiles, which also takes statistics."""
    engine = _exported_engine(lambda batch: network(batch)[0], network.shape, path, runtime)
    if engine.tiling is None or engine.tiling.whole or not engine.tiling.energies:
        return engine
    count = sum(engine.tiling.energies)

    def call(batch: np.ndarray) -> np.ndarray:
        """Compute whole images: all pixels count, and nothing is known from outside."""
        kept, unknown = np.ones((1, *batch.shape[1:3], 1), "float32"), np.full((1, count), -1, "float32")
        return np.concatenate([network(image[None], kept, unknown)[0] for image in batch])

    return replace(engine, function=call, tile_function=_tile_function(network))


def _load_litert(path: Path) -> Engine:
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it will move to a package of its own
        interpreter = tf.lite.Interpreter(str(path))
    forward = interpreter.get_signature_runner()  # fits its tensors to the size of each input
    ((name, details),) = forward.get_input_details().items()

    def call(batch: np.ndarray) -> np.ndarray:
        outputs = forward(**{name: batch})
        return np.array(outputs[min(outputs)])

    return _exported_engine(
        call, [int(size) if size > 0 else None for size in details["shape_signature"]], path, "litert"
    )


def _load_saved_model(path: Path) -> Engine:
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serve"]
    (name, spec), *_ = serve.structured_input_signature[1].items()

    def call(batch: np.ndarray) -> np.ndarray:
        outputs = serve(**{name: tf.constant(batch)})
        return next(iter(outputs.values())).numpy()

    return _exported_engine(call, spec.shape.as_list(), path, "tensorflow")


def _exported_engine(function: Function, shape: list, path: Path, runtime: str) -> Engine:
    """Return the engine of an artifact whose input has this shape, `None` for sizes left open."""
    _, height, width, channels = shape
    tiling, largest = _stated(read_card(path).export, path)
    return Engine(function, channels, path.name, path, None, (height, width), tiling, largest, runtime=runtime)


def _stated(export: Any, path: Path) -> tuple[Tiling | None, float | None]:
    """Return tiling and largest as an artifact's card states them; neither, if it does not."""
    export = export if isinstance(export, dict) else {}
    stated, integers = export.get("tiling"), export.get("int8")
    try:
        tiling = None if stated is None else Tiling(**stated)
        largest = None if integers is None else integers["largest"]
        counts = () if tiling is None else (tiling.halo + 1, tiling.multiple, tiling.bytes_per_pixel, tiling.outputs)
        counts += () if tiling is None else (*tiling.energies, tiling.whole_bytes_per_pixel or 1)
        if all(isinstance(count, int) and count >= 1 for count in counts) and (largest is None or largest > 0):
            return tiling, largest
    except (KeyError, TypeError):
        pass
    raise FileError(str(path), f"has a card whose tiling is {stated!r} and int8 {integers!r}.", "Export it again.")
