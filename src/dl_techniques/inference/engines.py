"""A model of any kind as one function from array to array."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.card import read_card
from dl_techniques.errors import ArgumentError, FileError

if TYPE_CHECKING:
    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel

Size = tuple[int | None, int | None]
WITHOUT_KERAS = (".onnx", ".xml")


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
        halo: Pixels that an output depends on to each side, `None` if it may depend on the whole image or the size is
            fixed: images are then computed whole.
        multiple: Crops that shall give what the whole image gives begin at multiples of this many pixels.
        largest: Largest intensity that 8-bit integers were calibrated for; `None` if there are none.
    """

    function: Function
    channels: int
    source: str
    path: Path
    model: ConvUNextModel | None = None
    size: Size = (None, None)
    halo: int | None = None
    multiple: int = 1
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
        source: A `.keras` file, a preset's name or folder, or an exported `.onnx`, `.xml` (OpenVINO), `.tflite` file or
            SavedModel folder.

    Raises:
        FileError: The file is broken or holds another kind of model.
        ArgumentError: There is no such file or preset.
    """
    from dl_techniques.models.convunext.presets import preset_folder, shipped_presets

    path = Path(source)
    loaders = {".keras": _load_keras, ".onnx": _load_onnx, ".xml": _load_openvino, ".tflite": _load_litert}
    if path.suffix in loaders and path.is_file():
        try:
            return loaders[path.suffix](path)
        except ModuleNotFoundError as error:
            remedy = f"Install it: pip install {error.name}"
            raise FileError(str(path), f"needs the module {error.name!r}, which is not installed.", remedy) from error
        except (ValueError, OSError, RuntimeError, TypeError, KeyError) as error:
            if isinstance(error, FileError | ArgumentError):
                raise
            raise FileError(str(path), f"cannot be loaded: {error}".split("\n")[0] + ".", "Export it again.") from error
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
    from dl_techniques.models.convunext.receptive import receptive_radius

    height, width, channels = model.input_shape
    halo = receptive_radius(model) if height is None and width is None else None
    return Engine(keras_function(model), channels, source, path, model, (height, width), halo, 2**model.depth)


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
    halo, multiple, largest = _stated(read_card(path).get("export"), path)
    return Engine(function, channels, path.name, path, None, (height, width), halo, multiple, largest)


def _stated(export: Any, path: Path) -> tuple[int | None, int, float | None]:
    """Return halo, multiple and largest as an artifact's card states them; without it, images are computed whole."""
    export = export if isinstance(export, dict) else {}
    tiling = export.get("tiling") or {"halo": None, "multiple": 1}
    integers = export.get("int8") or {"largest": None}
    try:
        halo, multiple, largest = tiling["halo"], tiling["multiple"], integers["largest"]
        whole = isinstance(multiple + (halo or 0), int) and min(multiple - 1, halo or 0) >= 0
        if whole and (largest is None or largest > 0):
            return halo, multiple, largest
    except (KeyError, TypeError):
        pass
    raise FileError(str(path), f"has a card whose tiling is {tiling!r} and int8 {integers!r}.", "Export it again.")
