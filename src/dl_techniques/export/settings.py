"""Settings of exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dl_techniques.engines.formats import FORMATS, SUFFIXES, ArtifactFormat, FormatName
from dl_techniques.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Settings of `convunext export`.

    Attributes:
        output: Path of the artifact: an `.onnx` file, an `.xml` file (OpenVINO, with a `.bin` file beside it), a
            `.tflite` file (LiteRT), or a name without suffix, the folder of a SavedModel.
        format: Format of the artifact (default: by the suffix of the output).
        size: Height and width of all images, in pixels (default: any).
        activation: Activation added to the output inside the artifact: `sigmoid`, `softmax` over the channels, or
            `argmax`, the index of the largest channel as `(batch, height, width, 1)`, int32.
        overwrite: Replace an existing artifact once the new one has passed the comparison.
        tiles: Export an ONNX or OpenVINO artifact for exact tiles in `convunext predict`: it does not normalize images,
            and a V2 model takes and returns the sums over the image.
        int8: Export an ONNX file of 8-bit integers, calibrated and measured on the images in this folder.
        max_loss: Largest loss by 8-bit integers: Dice of segmenters (default: 0.01), PSNR in dB of denoisers (0.25).
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    format: FormatName | None = None
    size: Annotated[tuple[int, int] | None, Parameter(negative=())] = None
    activation: Literal["none", "sigmoid", "softmax", "argmax"] = "none"
    overwrite: bool = False
    tiles: bool = False
    int8: Path | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        form = self.artifact_format
        if self.int8 is not None and not form.int8:
            raise ArgumentError("int8", f"needs an --output that ends in {_endings('int8')}", str(self.output))
        if self.max_loss is not None and self.int8 is None:
            raise ArgumentError("max_loss", "needs --int8", self.max_loss)
        if self.tiles and (self.size is not None or self.int8 is not None):
            raise ArgumentError("tiles", "must not go with --size or --int8", True)
        if self.tiles and not form.tiles:
            raise ArgumentError("tiles", f"needs an --output that ends in {_endings('tiles')}", str(self.output))
        suffix = self.output.suffix
        if form.suffix and suffix != form.suffix:
            raise ArgumentError("output", f"must end in {form.suffix} for --format {form.name}", str(self.output))
        if not form.suffix and suffix in (*SUFFIXES, ".keras"):  # "denoiser-1.2" is the name of a folder
            raise ArgumentError("output", f"must have no suffix for --format {form.name}", str(self.output))
        if self.size is not None and min(self.size) < 1:
            raise ArgumentError("size", "must be a height and a width of at least 1", self.size)

    @property
    def artifact_format(self) -> ArtifactFormat:
        """The format, given or that of the suffix."""
        if self.format is not None:
            return FORMATS[self.format]
        for form in FORMATS.values():
            if form.suffix == self.output.suffix:
                return form
        known = [f"{form.suffix} ({form.title})" for form in FORMATS.values() if form.suffix]
        folders = " or ".join(form.title for form in FORMATS.values() if not form.suffix)
        rule = f"must end in {', '.join(known)} or, for a {folders}, have no suffix"
        raise ArgumentError("output", rule, str(self.output))


def _endings(ability: str) -> str:
    return " or ".join(form.suffix for form in FORMATS.values() if getattr(form, ability))
