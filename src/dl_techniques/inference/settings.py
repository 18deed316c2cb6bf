"""Settings of what is done with models; the command line's flags are made from them. No import that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dl_techniques.data.formats import MAX_PIXELS
from dl_techniques.errors import ArgumentError

EngineName = Literal["auto", "keras", "openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16"]
GlobalStats = Literal["auto", "exact", "tile"]
ArtifactFormat = Literal["onnx", "openvino", "saved_model", "litert"]
ARTIFACT_SUFFIXES: dict[str, ArtifactFormat] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    "": "saved_model",  # a folder
    ".tflite": "litert",
}
AUTO = "auto"  # of max_memory: most of what is free
SIZED = 2**17  # pixels: from here on OpenVINO saves more than it takes to compile for a size


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Settings of `convunext denoise`.

    Attributes:
        output: Where results go: a folder, or for a single image a file whose suffix chooses the format.
        model: A preset's name, a `.keras` file or a preset's folder; a preset that ships, by the image's channels, if
            not given.
        tile: Larger images are computed in tiles of this height and width, in pixels, with exactly the same result.
        tta: Average over this many symmetries of the image (test-time augmentation): a little better, and as many times
            slower.
        compare: Save a picture of the image before and after, and of what was removed.
        inspect: Estimate noise and gain, and warn where the noise is not what the model knows.
        overwrite: Replace results that exist.
        max_pixels: Refuse larger images before they are decoded.
        engine: What computes: `keras`, or `openvino` or `onnxruntime`, which a Keras model is converted for once, or
            the fastest that is installed. Exports run in their own.
        precision: What OpenVINO computes in; `bfloat16` is faster on processors that have it and less exact.
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    model: str | None = None
    tile: int = 512
    tta: Literal[1, 2, 4, 8] = 1
    compare: bool = False
    inspect: bool = True
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    engine: EngineName = "auto"
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Settings of `convunext predict`.

    Attributes:
        output: Where results go: a folder, or for a single image a file.
        probabilities: Save the probabilities of a segmenter as well, float32 TIFF; of the second class alone where
            there are two.
        overlay: Save a picture of the image with the classes over it.
        tta: Average over this many symmetries of the image (test-time augmentation): a little better, and as many times
            slower.
        uncertainty: Save how far the symmetries disagree, their standard deviation, float32 TIFF.
        global_stats: How a V2 model, whose normalization looks at the whole image, is applied to images of several
            tiles: `exact` adds the statistics up in several passes, `tile` normalizes each tile by itself.
        max_memory: What arrays and network may take beside the runtime, such as `2GB`; `auto` is three quarters of what
            is free, with `--ray` 2GB for each worker. Larger images are computed in tiles.
        tile: Height and width of the tiles, in pixels; by the memory if not given.
        overwrite: Do again what is there already.
        max_pixels: Refuse larger images before they are decoded.
        engine: What computes: `keras`, or `openvino` or `onnxruntime`, which a Keras model is converted for once, or
            the fastest that is installed. Exports run in their own.
        precision: What OpenVINO computes in; `bfloat16` is faster on processors that have it and less exact.
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    probabilities: bool = False
    overlay: bool = False
    tta: Literal[1, 2, 4, 8] = 1
    uncertainty: bool = False
    global_stats: GlobalStats = "auto"
    max_memory: str = AUTO
    tile: int | None = None
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    engine: EngineName = "auto"
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of `convunext export`.

    Attributes:
        output: Where to: an `.onnx` file, an `.xml` file (OpenVINO, which puts a `.bin` beside it), a `.tflite` file
            (LiteRT), or a name without suffix, the folder of a SavedModel.
        format: Format of the artifact; by the suffix of the output if not given.
        size: Height and width of all images, in pixels; the artifact takes any if not given.
        activation: Done to the output inside the artifact: `sigmoid`, `softmax` over the channels, or `argmax`, the
            index of the largest channel as `(batch, height, width, 1)`, int32.
        overwrite: Replace an artifact that exists, once the new one has passed.
        tiles: Make an ONNX or OpenVINO artifact that `convunext predict` computes large images with in exact tiles,
            whatever the model: normalization is left to it, and of a V2 model the sums over the image go in and out.
        int8: Make an ONNX file of 8-bit integers, calibrated and measured on the images in this folder.
        max_loss: What that may cost: Dice of segmenters, 0.01 if not given, or dB of PSNR of denoisers, 0.25.
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    format: ArtifactFormat | None = None
    size: Annotated[tuple[int, int] | None, Parameter(negative=())] = None
    activation: Literal["none", "sigmoid", "softmax", "argmax"] = "none"
    overwrite: bool = False
    tiles: bool = False
    int8: Path | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        suffix = self.output.suffix
        if self.int8 is not None and suffix != ".onnx":
            raise ArgumentError("int8", "needs an --output that ends in .onnx", str(self.output))
        if self.max_loss is not None and self.int8 is None:
            raise ArgumentError("max_loss", "needs --int8", self.max_loss)
        if self.tiles and (self.size is not None or self.int8 is not None):
            raise ArgumentError("tiles", "must not go with --size or --int8", True)
        if self.tiles and suffix not in (".onnx", ".xml"):
            raise ArgumentError("tiles", "needs an --output that ends in .onnx or .xml", str(self.output))
        if self.format is None and suffix not in ARTIFACT_SUFFIXES:
            rule = "must end in .onnx, .xml (OpenVINO), .tflite (LiteRT) or, for a SavedModel, have no suffix"
            raise ArgumentError("output", rule, str(self.output))
        if self.format == "saved_model":  # "denoiser-1.2" is the name of a folder
            if suffix and suffix in (*ARTIFACT_SUFFIXES, ".keras"):
                raise ArgumentError("output", "must have no suffix for --format saved_model", str(self.output))
        elif self.format is not None and ARTIFACT_SUFFIXES.get(suffix) != self.format:
            wanted = next(key for key, value in ARTIFACT_SUFFIXES.items() if value == self.format)
            raise ArgumentError("output", f"must end in {wanted} for --format {self.format}", str(self.output))
        if self.size is not None and min(self.size) < 1:
            raise ArgumentError("size", "must be a height and a width of at least 1", self.size)

    @property
    def artifact_format(self) -> ArtifactFormat:
        """The format, given or inferred."""
        return self.format or ARTIFACT_SUFFIXES[self.output.suffix]
