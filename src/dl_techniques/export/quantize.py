"""An exported model in 8-bit integers, calibrated and measured on images of its user."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ExportError, FileError
from dl_techniques.images.files import find_images, read_image
from dl_techniques.tasks.base import Task

MOST_IMAGES = 64
CROP = 256  # height and width of the centres that are used, in pixels


@dataclass(frozen=True)
class Loss:
    """What 8 bits cost, measured on images that were not used to calibrate.

    `largest` is the largest intensity of the images that calibrated, `time` the share of the float artifact's time.
    """

    measure: str
    value: float
    limit: float
    calibrated: int
    measured: int
    largest: float
    time: float

    def __str__(self) -> str:
        loss = f"{self.measure} {self.value:.4f} on {self.measured} images, allowed {self.limit:g}"
        return f"{loss}; {self.time:.2f} of the time"

    @property
    def holds(self) -> bool:
        """Whether the value is finite and within the limit."""
        return self.value <= self.limit


def read_centres(images: Path, task: Task, channels: int, size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Return the centres of images as an artifact takes them, `(1, height, width, channels)`, float32.

    Raises:
        ArgumentError: The model is of a task whose loss is not known.
        FileError: There are fewer than two images, or they do not fit the model.
    """
    if task.quantization_limit is None:
        raise ArgumentError("int8", f"is not measured for models of task {task.name!r}", str(images))
    files = find_images([images])
    files = files[:: -(-len(files) // MOST_IMAGES)]
    if len(files) < 2:
        raise FileError(str(images), "holds fewer than two images.", "Name a folder of typical images.")
    height, width = size or (CROP, CROP)
    arrays = []
    for number, file in enumerate(files):
        pixels = read_image(file, channels=channels).pixels
        if channels == 1:  # colours one by one, as `convunext denoise` takes them
            pixels = pixels[..., [number % pixels.shape[2]]]
        if pixels.shape[2] != channels:
            raise FileError(str(file), f"has {pixels.shape[2]} channels, not {channels}.", "Convert it.")
        if size and (pixels.shape[0] < height or pixels.shape[1] < width):
            raise FileError(str(file), f"is smaller than the {height}x{width} of the artifact.", "Leave it out.")
        top, left = max(pixels.shape[0] - height, 0) // 2, max(pixels.shape[1] - width, 0) // 2
        arrays.append(pixels[None, top : top + height, left : left + width].astype("float32"))
    return arrays


def quantize(path: Path, centres: list[np.ndarray], task: Task, limit: float | None = None) -> Loss:
    """Replace an ONNX file by one of 8-bit weights and activations and measure what that costs.

    Every second image calibrates: the ranges of all activations on it become those of the integers. The others measure
    the loss, see `Task.quantization_loss`.

    Args:
        path: The file.
        centres: What `read_centres` returns.
        task: Of the model.
        limit: What the loss may be; that of the task if `None`.

    Raises:
        ExportError: The quantizer fails.
    """
    inputs = [task.quantization_input(x, number) for number, x in enumerate(centres)]
    calibration, measured = inputs[::2], inputs[1::2]
    expected, before = _run(path, measured)
    try:
        _quantize(path, calibration)
    except Exception as error:  # the quantizer's errors have no class in common
        raise ExportError(path.name, f"cannot be quantized to 8-bit integers: {error}".split("\n")[0]) from error
    actual, after = _run(path, measured)
    value = task.quantization_loss(expected, actual, centres[1::2])
    largest = max(float(np.abs(x).max()) for x in centres[::2])
    limit = task.quantization_limit if limit is None else limit
    return Loss(
        task.quantization_measure, float(value), limit or 0.0, len(calibration), len(measured), largest, after / before
    )


def _run(path: Path, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return the outputs of an artifact and the seconds that they took."""
    engine = load_engine(path)
    engine.function(inputs[0])  # the first call takes longer
    start = time.perf_counter()
    outputs = [engine.function(x) for x in inputs]
    return outputs, time.perf_counter() - start


def _quantize(path: Path, calibration: list[np.ndarray]) -> None:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: x} for x in calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.feeds, None)

    (name, *_) = (x.name for x in InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs())
    prepared = path.with_stem("prepared")
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    logging.disable(logging.WARNING)  # what ONNX Runtime logs of operations that it leaves in float
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(path), Reader(name), per_channel=True, **kinds)
    finally:
        logging.disable(logging.NOTSET)
    prepared.unlink()
