"""What is wrong with a data set, file by file: all of it is collected, and the first ten are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import SEPARATOR, FileError, first_of
from dl_techniques.images.metadata import apply_orientation
from dl_techniques.images.source import Picture


def refuse(findings: Sequence[str], total: int, folder: str) -> None:
    """Raise `FileError` for pairs of a folder that cannot be used; each finding begins with its file."""
    if findings:
        listed = first_of(sorted(findings), SEPARATOR)
        raise FileError(folder, f"{len(findings)} of {total} pairs cannot be used:{SEPARATOR}{listed}")


def mixture(found: Sequence[tuple[str, int]]) -> list[str]:
    """Return what is wrong with images that have other channels than most.

    Args:
        found: File and number of channels of each image.
    """
    kinds = Counter(channels for _, channels in found).most_common()
    return [
        f"{path}: has {channels} channels where most have {kinds[0][0]}. Convert the images to one kind."
        for path, channels in found
        if channels != kinds[0][0]
    ]


def overlap(training: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is wrong with images to validate on that are trained on, too; both by digest and file."""
    known = dict(training)
    return [
        f"{path}: is the same image as {known[digest]}, which is in the training set. Remove one of them."
        for digest, path in validation
        if digest in known
    ]


def turned_alike(pair: Pair, image: Picture, target: np.ndarray, held: Picture) -> np.ndarray:
    """Return a target that lies as its image does, which its EXIF orientation has turned upright.

    A target without orientation may be upright, or lie as the samples in the image's file do. Its size tells which,
    unless both have the same.

    Args:
        pair: Their files.
        image: The image, upright.
        target: The target as it was read, `(height, width, channels)`.
        held: What the target's file held.

    Raises:
        FileError: How the target lies cannot be told.
    """
    orientations, size = (image.orientation, held.orientation), image.pixels.shape[:2]
    if orientations[0] == orientations[1] or 1 not in orientations:
        return target
    swapped = max(orientations) > 4 and target.shape[:2] == size[::-1]
    if target.shape[:2] == size and (max(orientations) <= 4 or size[0] == size[1]):
        files = zip((pair.image.name, pair.target.name), orientations, strict=True)
        told = ", ".join(f"{name} {'none' if found == 1 else found}" for name, found in files)
        reason = f"may be upright or turned against its image; EXIF orientation: {told}."
        remedy = "Save both upright and without orientation, or both with the same."
        raise FileError(pair.words(pair.target), reason, remedy)
    return apply_orientation(target, image.orientation) if swapped and held.orientation == 1 else target
