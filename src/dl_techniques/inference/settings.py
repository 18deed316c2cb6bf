"""Settings of what is done with models; the command line's flags are made from them. No import that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import Parameter

from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.images.formats import MAX_PIXELS

GlobalStats = Literal["auto", "exact", "tile"]
AUTO = "auto"  # of max_memory: most of what is free


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Settings of `convunext predict`.

    Attributes:
        output: Where to write results: a folder, or for a single image a file.
        probabilities: Also save a segmenter's probabilities, float32 TIFF; with two classes, those of the second only.
        overlay: Save a picture of the image overlaid with the classes.
        compare: Save a picture of the image before, after and the difference; denoisers and restorers only.
        inspect: Estimate noise and gain, and warn if the noise is not white Gaussian; denoisers only.
        tta: Average over this many symmetries of the image (test-time augmentation): slightly better, and slower by the
            same factor.
        uncertainty: Save the standard deviation over these symmetries, float32 TIFF.
        global_stats: How a V2 model, which normalizes over the whole image, is applied to images of several tiles:
            `exact` adds up the statistics in several passes, `tile` normalizes each tile separately.
        max_memory: Memory limit of arrays and network without the runtime, such as `2GB`; `auto` is three quarters of
            the free memory, with `--ray` 2GB for each worker. Larger images are computed in tiles.
        tile: Height and width of the tiles, in pixels (default: the largest that fit --max-memory).
        overwrite: Compute results again that exist already.
        max_pixels: Refuse larger images before they are decoded.
        engine: Engine: `keras`, or `openvino` or `onnxruntime`, for which a Keras model is converted once, or `auto`,
            the fastest that is installed. Exports run in their own runtime.
        precision: Computation precision on OpenVINO; `bfloat16` is faster on processors that support it, less exact.
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    probabilities: bool = False
    overlay: bool = False
    compare: bool = False
    inspect: bool = False
    tta: Literal[1, 2, 4, 8] = 1
    uncertainty: bool = False
    global_stats: GlobalStats = "auto"
    max_memory: str = AUTO
    tile: int | None = None
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    engine: EngineName = "auto"
    precision: Precision = "float32"

    resumes: ClassVar[bool] = True  # results that exist are those of an earlier run

    @property
    def extras(self) -> frozenset[str]:
        """Options that only some tasks have, see `tasks.base.Task`."""
        names = ("probabilities", "overlay", "compare", "inspect")
        return frozenset(name for name in names if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions(PredictionOptions):
    """Settings of `convunext denoise`: those of `predict`, and the model.

    Attributes:
        output: Where to write results: a folder, or for a single image a file whose suffix selects the format.
        model: A preset's name, a `.keras` file, a preset's folder or an export (default: the shipped preset for the
            image's channels).
        inspect: Estimate noise and gain, and warn if the noise is not white Gaussian.
        max_memory: Memory limit of arrays and network without the runtime. Larger images are computed in tiles.
    """

    model: str | None = None
    inspect: bool = True
    max_memory: str = "2GB"

    resumes: ClassVar[bool] = False
