"""A model of any kind as one function from array to array."""

from __future__ import annotations

import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.card import read_card
from dl_techniques.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel

RUN_MODEL = "model.keras"  # in the folder of a training run
Size = tuple[int | None, int | None]
WITHOUT_KERAS = (".onnx", ".xml")


@dataclass(frozen=True)
class Tiling:
    """What a model's graph tells of its application to parts of images, kept for where there is only an artifact.

    Attributes:
        halo: Pixels that an output depends on to each side.
        multiple: Parts that shall give what the whole image gives begin at multiples of this many pixels.
        bytes_per_pixel: Memory for each pixel that is computed at once, without the weights.
        outputs: Channels of the output.
    """

    halo: int
    multiple: int
    bytes_per_pixel: int
    outputs: int


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
        tiling: How an artifact is applied to parts of images, `None` if it takes whole images only.
        largest: Largest intensity that the 8-bit integers of an artifact were calibrated for; `None` if it has none.
    """

    function: Function
    channels: int
    source: str
    path: Path
    model: ConvUNextModel | None = None
    size: Size = (None, None)
    tiling: Tiling | None = None
    largest: float | None = None

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return a height and a width that the model takes: its own where they are fixed, otherwise those given."""
        return self.size[0] or size[0], self.size[1] or size[1]


def needs_keras(source: str | os.PathLike | None) -> bool:
    """Return whether `load_engine` needs Keras for a model; `None` stands for a preset."""
    return source is None or Path(source).suffix not in WITHOUT_KERAS


def load_engine(source: str | os.PathLike) -> Engine:
    """Load a model.

    Args:
        source: A `.keras` file, a run's folder, a preset's name or folder, or an exported `.onnx`, `.xml` (OpenVINO),
            `.tflite` file or SavedModel folder.

    Raises:
        FileError: The file is broken or holds another kind of model.
        ArgumentError: There is no such file or preset.
    """
    from dl_techniques.models.convunext.presets import preset_folder, shipped_presets

    path = Path(source)
    if (path / RUN_MODEL).is_file():
        path = path / RUN_MODEL
    loaders = {".keras": _load_keras, ".onnx": _load_onnx, ".xml": _load_openvino, ".tflite": _load_litert}
    if path.suffix in loaders and path.is_file():
        try:
            return loaders[path.suffix](path)
        except ModuleNotFoundError as error:
            remedy = f"Install it: pip install {error.name}"
            raise FileError(str(path), f"needs the module {error.name!r}, which is not installed.", remedy) from error
        except (ValueError, OSError, RuntimeError, TypeError, KeyError, zipfile.BadZipFile) as error:
            if isinstance(error, FileError | ArgumentError):
                raise
            raise FileError(str(path), f"cannot be loaded: {error}".split("\n")[0] + ".", "Get it again.") from error
    if (path / "saved_model.pb").is_file():
        return _load_saved_model(path)
    if path.suffix in loaders:
        raise FileError(str(path), "does not exist.", "Check the path.")
    try:
        folder = preset_folder(str(source))
    except ArgumentError as error:
        rule = f"must be a file (.keras, .onnx, .xml, .tflite), an exported folder or one of {shipped_presets()}"
        raise ArgumentError("model", rule, str(source)) from error
    from dl_techniques.models.convunext.model import ConvUNextModel

    model = ConvUNextModel.from_preset(folder)
    return _keras_engine(model, f"preset {folder.name}", folder)


def _load_keras(path: Path) -> Engine:
    import keras

    from dl_techniques.models.convunext.model import ConvUNextModel

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if not isinstance(model, ConvUNextModel):
        raise FileError(str(path), f"holds a {type(model).__name__}, not a ConvUNextModel.", "Name another file.")
    return _keras_engine(model, path.name, path)


def _keras_engine(model: ConvUNextModel, source: str, path: Path) -> Engine:
    from dl_techniques.models.convunext.function import keras_function

    height, width, channels = model.input_shape
    return Engine(keras_function(model), channels, source, path, model, (height, width))


def _load_onnx(path: Path) -> Engine:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no class in common
        raise ValueError(error) from error
    (first,) = session.get_inputs()
    output = session.get_outputs()[0].name

    def call(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([output], {first.name: batch})[0])

    return _exported_engine(call, [size if isinstance(size, int) else None for size in first.shape], path)


def _load_openvino(path: Path) -> Engine:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32"}  # on processors with bfloat16 it would be used otherwise
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    sizes = compiled.inputs[0].get_partial_shape()
    shape = [size.get_length() if size.is_static else None for size in sizes]
    return _exported_engine(lambda batch: np.asarray(compiled(batch)[0]), shape, path)


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

    return _exported_engine(call, [int(size) if size > 0 else None for size in details["shape_signature"]], path)


def _load_saved_model(path: Path) -> Engine:
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serve"]
    (name, spec), *_ = serve.structured_input_signature[1].items()

    def call(batch: np.ndarray) -> np.ndarray:
        outputs = serve(**{name: tf.constant(batch)})
        return next(iter(outputs.values())).numpy()

    return _exported_engine(call, spec.shape.as_list(), path)


def _exported_engine(function: Function, shape: list, path: Path) -> Engine:
    """Return the engine of an artifact whose input has this shape, `None` for sizes left open."""
    _, height, width, channels = shape
    tiling, largest = _stated(read_card(path).get("export"), path)
    return Engine(function, channels, path.name, path, None, (height, width), tiling, largest)


def _stated(export: Any, path: Path) -> tuple[Tiling | None, float | None]:
    """Return tiling and largest as an artifact's card states them; neither, if it does not."""
    export = export if isinstance(export, dict) else {}
    stated, integers = export.get("tiling"), export.get("int8")
    try:
        tiling = None if stated is None else Tiling(**stated)
        largest = None if integers is None else integers["largest"]
        counts = () if tiling is None else (tiling.halo + 1, tiling.multiple, tiling.bytes_per_pixel, tiling.outputs)
        if all(isinstance(count, int) and count >= 1 for count in counts) and (largest is None or largest > 0):
            return tiling, largest
    except (KeyError, TypeError):
        pass
    raise FileError(str(path), f"has a card whose tiling is {stated!r} and int8 {integers!r}.", "Export it again.")
