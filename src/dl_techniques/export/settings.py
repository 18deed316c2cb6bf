"""Settings of exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dl_techniques.engines.formats import ARTIFACT_SUFFIXES, ArtifactFormat
from dl_techniques.errors import ArgumentError


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
