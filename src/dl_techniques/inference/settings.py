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
        output: Where results go: a folder, or for a single image a file.
        probabilities: Save the probabilities of a segmenter as well, float32 TIFF; of the second class alone where
            there are two.
        overlay: Save a picture of the image with the classes over it.
        compare: Save a picture of the image before and after, and of what was removed; of models that restore.
        inspect: Estimate noise and gain, and warn where the noise is not what the model knows; of denoisers.
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
        output: Where results go: a folder, or for a single image a file whose suffix chooses the format.
        model: A preset's name, a `.keras` file, a preset's folder or an export; a preset that ships, by the image's
            channels, if not given.
        inspect: Estimate noise and gain, and warn where the noise is not what the model knows.
        max_memory: What arrays and network may take beside the runtime. Larger images are computed in tiles.
    """

    model: str | None = None
    inspect: bool = True
    max_memory: str = "2GB"

    resumes: ClassVar[bool] = False
