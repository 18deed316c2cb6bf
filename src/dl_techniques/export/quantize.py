"""An exported model in 8-bit integers, calibrated and measured on images of its user."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl_techniques.card import ModelCard
from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ExportError, FileError
from dl_techniques.images.files import find_images, read_image
from dl_techniques.metrics import Confusion

MOST_IMAGES = 64
CROP = 256  # height and width of the centres that are used, in pixels
NOISE = 25 / 255  # standard deviation of the noise put on images for denoisers, of the largest intensity
LIMITS = {"denoise": 0.25, "segment": 0.01}  # dB of PSNR, and Dice


@dataclass(frozen=True)
class Loss:
    """What 8 bits cost, measured on images that were not used to calibrate.

    Attributes:
        measure: What was measured.
        value: What came out.
        limit: What it may be.
        calibrated: Images that the ranges of the intensities come from.
        measured: Images that it was measured on.
        largest: Largest intensity of the images that calibrated, before noise.
        time: Share of the float artifact's time, on these images and this machine.
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


def read_centres(images: Path, card: ModelCard, channels: int, size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Return the centres of images as an artifact takes them, `(1, height, width, channels)`, float32.

    Args:
        images: A folder of images like those that the artifact is for.
        card: The model's card.
        channels: Channels of the artifact.
        size: Its height and width, `None` if it takes any.

    Raises:
        ArgumentError: The model is of a task whose loss is not known.
        FileError: There are fewer than two images, or they do not fit the model.
    """
    if card.task not in LIMITS:
        raise ArgumentError("int8", f"needs a card whose task is {' or '.join(LIMITS)}", card.task)
    files = find_images([images])
    files = files[:: -(-len(files) // MOST_IMAGES)]
    if len(files) < 2:
        raise FileError(str(images), "holds fewer than two images.", "Name a folder of images like those to come.")
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


def quantize(path: Path, centres: list[np.ndarray], card: ModelCard, limit: float | None = None) -> Loss:
    """Replace an ONNX file by one of 8-bit weights and activations and measure what that costs.

    Every second image calibrates: the ranges of all activations on it become those of the integers. The others tell the
    loss: of a segmenter, 1 − the mean Dice of its masks against those of the float artifact; of a denoiser, how much
    lower its PSNR is, with Gaussian noise of σ = 25 of 255 put on the images.

    Args:
        path: The file.
        centres: What `read_centres` returns.
        card: The model's card.
        limit: What the loss may be; 0.01 (Dice) or 0.25 (dB) if `None`.

    Raises:
        ExportError: The quantizer fails.
    """
    task = str(card.task)
    inputs = [_noisy(x, number) for number, x in enumerate(centres)] if task == "denoise" else centres
    calibration, measured = inputs[::2], inputs[1::2]
    expected, before = _run(path, measured)
    try:
        _quantize(path, calibration)
    except Exception as error:  # the quantizer's errors have no class in common
        raise ExportError(path.name, f"cannot be made of 8-bit integers: {error}".split("\n")[0]) from error
    actual, after = _run(path, measured)
    if task == "segment":
        measure, value = "loss of Dice", 1 - _agreement(expected, actual, card)
    else:
        measure, value = "loss of PSNR in dB", _psnr(expected, centres[1::2]) - _psnr(actual, centres[1::2])
    largest = max(float(np.abs(x).max()) for x in centres[::2])
    limit = LIMITS[task] if limit is None else limit
    return Loss(measure, float(value), limit, len(calibration), len(measured), largest, after / before)


def _run(path: Path, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Return the outputs of an artifact and the seconds that they took."""
    engine = load_engine(path)
    engine.function(inputs[0])  # the first call takes longer
    start = time.perf_counter()
    outputs = [engine.function(x) for x in inputs]
    return outputs, time.perf_counter() - start


def _noisy(x: np.ndarray, seed: int) -> np.ndarray:
    return add_gaussian_noise(x, NOISE * float(np.abs(x).max()), np.random.default_rng(seed))


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


def _agreement(expected: list[np.ndarray], actual: list[np.ndarray], card: ModelCard) -> float:
    labels = bool(card.details.get("labels"))
    confusion = Confusion(2 if labels else max(len(card.details.get("classes", ())), 2))
    for truth, output in zip(expected, actual, strict=True):
        truth, output = (x > 0.5 if labels else _classes(x) for x in (truth, output))
        confusion.update(output, truth, np.ones(truth.shape, bool))
    return confusion.mean_dice


def _classes(output: np.ndarray) -> np.ndarray:
    """Return class indices, given indices or probabilities."""
    if output.dtype.kind != "f":
        return output[..., 0]
    return (output[..., 0] > 0.5).astype(int) if output.shape[-1] == 1 else output.argmax(axis=-1)


def _psnr(outputs: list[np.ndarray], clean: list[np.ndarray]) -> float:
    """Return the mean PSNR in dB, the largest intensity of each image as its peak."""
    pairs = zip(outputs, clean, strict=True)
    return float(np.mean([10 * np.log10(np.square(x.max()) / np.mean(np.square(y - x))) for y, x in pairs]))
