"""What is wrong with a data set, file by file: all of it is collected, and the first ten are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.tasks.segmentation.classes import Classes, describe_values, value_name

SEPARATOR = "\n  "


def refuse(findings: Sequence[str], total: int, folder: str) -> None:
    """Raise `FileError` if something was found.

    Args:
        findings: A sentence for each pair that cannot be used; it begins with the file.
        total: Number of pairs.
        folder: Where they are.
    """
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
    """Return what is wrong with images to validate on that are trained on, too.

    Args:
        training: Digest and file of each image.
        validation: The same.
    """
    known = dict(training)
    return [
        f"{path}: is the same image as {known[digest]}, which is trained on. Take one of them away."
        for digest, path in validation
        if digest in known
    ]


def refuse_values(masks: Sequence[tuple[str, Mapping[int, int]]], classes: Classes) -> None:
    """Raise `FileError` if masks hold values that are no class.

    Args:
        masks: File and pixels of each value, of each mask.
        classes: What they may hold.
    """
    if classes.foreground or classes.labels:
        return
    known = {*classes.values, *classes.ignored}
    found = [(path, sorted(set(counts) - known)) for path, counts in masks]
    allowed = describe_values(classes.values)
    stray = [
        f"{path}: holds the values {describe_values(values)}, which are no class: {allowed}." for path, values in found
        if values
    ]  # fmt: skip
    if stray:
        reason = f"{len(stray)} of {len(masks)} masks:{SEPARATOR}{first_of(stray, SEPARATOR)}{SEPARATOR[:-1]}"
        raise FileError("masks", reason, "Mend them, or name the values as ignored.")


def refuse_unnamed(
    masks: Sequence[tuple[str, Mapping[int, int]]], names: Sequence[str], ignored: Sequence[int]
) -> None:
    """Raise `ArgumentError` if masks hold more values than there are names of classes; name those in the fewest masks.

    Args:
        masks: File and pixels of each value, of each mask.
        names: Of the classes.
        ignored: Values that do not count.
    """
    within = Counter(value for _, counts in masks for value in counts if value not in ignored)
    surplus = len(within) - len(names)
    if not names or surplus <= 0:
        return
    rarest = sorted(within, key=lambda value: (within[value], -value))[:surplus]
    told = [
        f"{value_name(value)} is in {first_of([path for path, counts in masks if value in counts])}" for value in rarest
    ]
    rule = f"must name {len(within)} classes, one for each of the values {describe_values(sorted(within))}"
    remedy = f"In the fewest masks: {first_of(told, '; ')}. Mend them, or name values that do not count with --ignore."
    raise ArgumentError("classes", rule, tuple(names), remedy)
