"""What is wrong with a data set, file by file: all of it is collected, and the first ten are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dl_techniques.errors import SEPARATOR, FileError, first_of


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
