"""What the masks of a data set hold: how they are read, what their values mean, what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dl_techniques.datasets.checks import SEPARATOR
from dl_techniques.datasets.inspection import Inspection
from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.tasks.segmentation.classes import (
    IGNORED,
    MANY_VALUES,
    Classes,
    choose_classes,
    choose_labels,
    describe_values,
    value_names,
)
from dl_techniques.tasks.segmentation.readers import are_instances, is_full_scale, soft_values

if TYPE_CHECKING:
    from rich.console import Console


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
        chosen = _kind_of(inspection, kind, names, ignored)
        if chosen != "foreground":
            check_names(inspection, names, ignored)
        zero_is_black = not all(entry.found.inverted for entry in inspection.facts)
        classes = choose_classes(mask_counts(inspection), chosen, names, ignored, zero_is_black)
        classes = replace(classes, alpha=kind == "alpha")
    check_counted(inspection, classes)
    return _painted(inspection, classes)


def _kind_of(inspection: Inspection, kind: str, names: Sequence[str], ignored: Sequence[int]) -> str:
    """Return the kind of masks, as far as it is sure.

    Raises:
        ArgumentError: Masks hold more values than can be meant.
    """
    facts, values = inspection.facts, set(mask_counts(inspection)) - set(ignored)
    if kind in ("foreground", "alpha") or (kind == "auto" and is_full_scale(facts, ignored)):
        return "foreground"
    if names:
        return kind
    soft = sorted(values & set(soft_values(facts)))
    remedy = "For objects on a background use --mask-kind foreground; otherwise name the classes with --classes"
    if len(soft) >= 3 and len(values) - len(soft) < min(len(soft), MANY_VALUES):
        received = f"values only in lines between others: {describe_values(soft)}"
        raise ArgumentError("masks", "must have hard edges", received, f"Save them without smoothing. {remedy}.")
    if kind == "auto" and len(values) > MANY_VALUES and not are_instances(facts):
        rule = f"must hold at most {MANY_VALUES} values, unless it is said what they mean"
        received = f"{len(values)} values: {describe_values(sorted(values))}"
        raise ArgumentError("masks", rule, received, f"{remedy} or use --mask-kind classes.")
    return kind


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


def telling_pairs(inspection: Inspection, count: int = 3) -> list[Pair]:
    """Return pairs whose masks together hold as many values as so few can."""
    chosen: list[Pair] = []
    left, seen = list(inspection.facts), set()
    while left and len(chosen) < count:
        entry = max(left, key=lambda facts: len(set(facts.found.counts) - seen))
        left.remove(entry)
        seen |= set(entry.found.counts)
        chosen.append(entry.pair)
    return chosen


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
        f"{name} is in {first_of([path for path, counts in masks if value in counts])}"
        for value, name in zip(rarest, value_names(rarest), strict=True)
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
