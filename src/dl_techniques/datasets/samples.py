"""The images that ship with the package: 24 fluorescence images of cell nuclei, CC0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dl_techniques.images.files import read_gray

NUCLEI = Path(__file__).parent / "nuclei"


@dataclass(frozen=True)
class Sample:
    """An image and its mask.

    Attributes:
        name: Stem of the file's name.
        image: `(height, width, 1)`, float32, in units of the image's 99.8th percentile.
        mask: `(height, width, 1)`, float32, 1 where a nucleus is.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray


def load_nuclei(folder: Path = NUCLEI) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the held-out samples; every fourth by name is held out.

    Raises:
        FileError: A file is missing or broken.
    """
    samples = [_load(path, folder / "label" / path.name) for path in sorted((folder / "image").glob("*.png"))]
    held_out = samples[3::4]
    return [sample for index, sample in enumerate(samples) if index % 4 != 3], held_out


def _load(image_path: Path, mask_path: Path) -> Sample:
    image = read_gray(image_path).astype("float32")
    bright = max(float(np.percentile(image, 99.8)), 1.0)
    mask = (read_gray(mask_path) > 0).astype("float32")
    return Sample(image_path.stem, image[..., None] / bright, mask[..., None])
