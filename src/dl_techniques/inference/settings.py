"""Settings of what is done with models; the command line's flags are made from them. No import that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dl_techniques.data.formats import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Settings of `convunext denoise`.

    Attributes:
        output: Where results go: a folder, or for a single image a file whose suffix chooses the format.
        model: A preset's name, a `.keras` file or a preset's folder; a preset that ships, by the image's channels, if
            not given.
        tile: Larger images are computed in tiles of this height and width, in pixels, with exactly the same result.
        compare: Save a picture of the image before and after, and of what was removed.
        inspect: Estimate noise and gain, and warn where the noise is not what the model knows.
        overwrite: Replace results that exist.
        max_pixels: Refuse larger images before they are decoded.
    """

    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    model: str | None = None
    tile: int = 512
    compare: bool = False
    inspect: bool = True
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
