"""What the masks of a data set hold: how they are read, what their values mean, what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques.datasets.checks import SEPARATOR
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.targets import PairFacts, TargetReader
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.images.source import Channels, ImageSource, Picture
from dl_techniques.tasks.segmentation.classes import (
    IGNORED,
    Classes,
    choose_classes,
    choose_labels,
    describe_values,
    value_name,
)
from dl_techniques.tasks.segmentation.masks import labels_from, mask_from

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class MaskFacts:
    """Pixels of each value or label (`IGNORED`: that do not count), and colours, 0xRRGGBB, where there are any."""

    counts: Mapping[int, int]
    colours: Mapping[int, int] = field(default_factory=dict)


class MaskReader(TargetReader):
    """Reads masks of which each pixel has one value; see `mask_from`."""

    pages = "A stack needs a target of as many pages; pages that are labels need --mask-kind labels."

    def read(
        self, source: ImageSource, page: int | None, channels: Channels, image: Picture | None
    ) -> tuple[np.ndarray, Picture]:
        mask, picture = mask_from(source, page)
        return mask[..., None], picture

    def describe(self, target: np.ndarray, picture: Picture) -> MaskFacts:
        values, counts = (found.tolist() for found in np.unique(target, return_counts=True))
        return MaskFacts(dict(zip(values, counts, strict=True)), colours_of(picture, values))

    def notes(self, facts: Sequence[PairFacts]) -> list[str]:
        return _empty(facts, "one value only", lambda counts: len(counts) == 1)


@dataclass(frozen=True)
class LabelReader(TargetReader):
    """Reads labels that may overlap; see `labels_from`.

    Args:
        ignored: Values of pixels that do not count.
    """

    ignored: tuple[int, ...] = ()
    parts = True

    def read(
        self, source: ImageSource, page: int | None, channels: Channels, image: Picture | None
    ) -> tuple[np.ndarray, Picture]:
        return labels_from(source, self.ignored, page)

    def describe(self, target: np.ndarray, picture: Picture) -> MaskFacts:
        found = {label: int((target[..., label] == 1).sum()) for label in range(target.shape[2])}
        found[IGNORED] = int((target[..., 0] == IGNORED).sum())
        return MaskFacts({value: count for value, count in found.items() if count})

    def notes(self, facts: Sequence[PairFacts]) -> list[str]:
        return _empty(facts, "no label", lambda counts: not set(counts) - {IGNORED})


def _empty(facts: Sequence[PairFacts], held: str, test: Callable[[Mapping[int, int]], bool]) -> list[str]:
    empty = [entry.pair.words(entry.pair.target.name) for entry in facts if entry.found and test(entry.found.counts)]
    return [f"{len(empty)} masks hold {held}: {first_of(empty)}"] if empty else []


def colours_of(picture: Picture, values: Iterable[int]) -> dict[int, int]:
    """Return the colour, 0xRRGGBB, of each value of a mask with a palette or painted in colours; none of a grey one."""
    if picture.palette is None:
        return {value: value for value in values} if picture.pixels.shape[2] >= 3 else {}
    entries = picture.palette.tolist()
    colours = {value: entries[value] for value in values if value < len(entries)}
    grey = all(len(set(colour)) == 1 for colour in colours.values())  # a ramp, which shows nothing
    return {} if grey else {value: r << 16 | g << 8 | b for value, (r, g, b) in colours.items()}


def reader_of(classes: Classes) -> MaskReader | LabelReader:
    """Return what reads the masks of known classes."""
    return LabelReader(classes.ignored) if classes.labels else MaskReader()


def find_classes(
    inspection: Inspection, kind: str, names: tuple[str, ...] = (), ignored: tuple[int, ...] = ()
) -> Classes:
    """Decide what the masks of a data set mean, and check that they can be learned from.

    `kind`, `names` and `ignored` are those of `choose_classes`; `kind` may also be `"labels"`.

    Raises:
        FileError: No pixel counts on one side of the split.
        ArgumentError: Too few or too many values, or another number of names.
    """
    if kind == "labels":
        classes = choose_labels(inspection.facts[0].target_channels, names, ignored)
    else:
        if kind != "foreground":
            check_names(inspection, names, ignored)
        classes = choose_classes(mask_counts(inspection), kind, names, ignored)
    check_counted(inspection, classes)
    return _painted(inspection, classes)


def mask_counts(inspection: Inspection) -> Counter[int]:
    """Return the pixels of each mask value over all masks; see `MaskFacts`."""
    return sum((Counter(facts.found.counts) for facts in inspection.facts), Counter())


def describe_classes(inspection: Inspection, classes: Classes, console: Console) -> None:
    """Show the shares of the classes."""
    from rich.table import Table

    heading = ("label", "channel") if classes.labels else ("class", "mask value")
    table = Table(*heading, "share of pixels", "images with it")
    for index, (name, share, present) in enumerate(class_shares(inspection, classes)):
        shown = f"all but {classes.values[0]}" if classes.foreground and index else str(classes.values[index])
        table.add_row(name, shown, f"{share:.2%}", str(present))
    if classes.ignored:
        counts = mask_counts(inspection)
        share = sum(counts[value] for value in _uncounted(classes)) / inspection.pixels
        table.add_row("ignored", ", ".join(map(str, classes.ignored)), f"{share:.2%}", "")
    console.print(table)


def class_shares(inspection: Inspection, classes: Classes) -> list[tuple[str, float, int]]:
    """Return of each class its name, its share of all pixels in [0, 1], and the number of images with it."""
    counts, rows = mask_counts(inspection), []
    for index, name in enumerate(classes.names):
        inside = [classes.values[index]]
        if classes.foreground and index == 1:
            inside = [value for value in counts if value != classes.values[0] and value not in classes.ignored]
        share = sum(counts[value] for value in inside) / inspection.pixels
        present = sum(any(facts.found.counts.get(value) for value in inside) for facts in inspection.facts)
        rows.append((name, share, present))
    return rows


def check_counted(inspection: Inspection, classes: Classes) -> None:
    """Raise `FileError` if no pixel counts on one side of the split."""
    facts, split = inspection.facts, inspection.training
    for use, side in (("train", facts[:split]), ("validate", facts[split:])):
        ignored = [sum(entry.found.counts.get(value, 0) for value in _uncounted(classes)) for entry in side]
        if side and all(count == entry.size[0] * entry.size[1] for count, entry in zip(ignored, side, strict=True)):
            named = first_of([entry.pair.words(entry.pair.target.name) for entry in side])
            reason = f"contain only ignored pixels in all images to {use} on: {named}."
            raise FileError("masks", reason, "Choose other images (--val-images, --seed), or ignore fewer values.")


def check_values(inspection: Inspection, classes: Classes) -> None:
    """Raise `FileError` if masks hold values that are no class."""
    if classes.foreground or classes.labels:
        return
    known = {*classes.values, *classes.ignored}
    found = [(path, sorted(set(counts) - known)) for path, counts in _by_file(inspection)]
    allowed = describe_values(classes.values)
    stray = [
        f"{path}: holds the values {describe_values(values)}, but the classes are {allowed}." for path, values in found
        if values
    ]  # fmt: skip
    if stray:
        reason = f"{len(stray)} of {len(found)} masks:{SEPARATOR}{first_of(stray, SEPARATOR)}{SEPARATOR[:-1]}"
        raise FileError("masks", reason, "Correct them, or exclude the values with --ignore.")


def check_names(inspection: Inspection, names: Sequence[str], ignored: Sequence[int]) -> None:
    """Raise `ArgumentError` if masks hold more values than there are names; name those in the fewest masks."""
    masks = _by_file(inspection)
    within = Counter(value for _, counts in masks for value in counts if value not in ignored)
    surplus = len(within) - len(names)
    if not names or surplus <= 0:
        return
    rarest = sorted(within, key=lambda value: (within[value], -value))[:surplus]
    found = [
        f"{value_name(value)} is in {first_of([path for path, counts in masks if value in counts])}" for value in rarest
    ]
    rule = f"must name {len(within)} classes, one for each of the values {describe_values(sorted(within))}"
    remedy = f"In the fewest masks: {first_of(found, '; ')}. Correct them, or exclude values with --ignore."
    raise ArgumentError("classes", rule, tuple(names), remedy)


def _painted(inspection: Inspection, classes: Classes) -> Classes:
    """Return classes with the colours that the masks give them, if all masks with a class agree on its colour."""
    if classes.labels or (classes.foreground and len(set(mask_counts(inspection)) - set(classes.ignored)) > 2):
        return classes
    found = {item for facts in inspection.facts for item in facts.found.colours.items()}
    known = dict(found)
    plain = any(facts.found.counts and not facts.found.colours for facts in inspection.facts)
    clear = len(known) == len(found) and len({known.get(value) for value in classes.values}) == classes.count
    if plain or not clear or None in map(known.get, classes.values):
        return classes
    return replace(classes, painted=tuple(known[value] for value in classes.values))


def _uncounted(classes: Classes) -> tuple[int, ...]:
    return (IGNORED,) if classes.labels else classes.ignored


def _by_file(inspection: Inspection) -> list[tuple[str, Mapping[int, int]]]:
    """Return of each mask its file, as messages name it, and the pixels of each value, sorted by name."""
    found = [(facts.pair.words(facts.pair.target), facts.found.counts) for facts in inspection.facts]
    return sorted(found, key=lambda entry: entry[0])
