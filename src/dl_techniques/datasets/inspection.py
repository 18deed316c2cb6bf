"""A look at a data set before anything is trained: every file is read once, and what is wrong is named."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dl_techniques.datasets.checks import mixture, overlap, refuse
from dl_techniques.datasets.lazy import DecodedCache, MemoryBudget
from dl_techniques.datasets.pairs import Pair, find_pairs, split_pairs
from dl_techniques.errors import ConvUNextError, FileError, first_of
from dl_techniques.images.files import Channels, Picture, read_image
from dl_techniques.images.palettes import mask_colours
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes
from dl_techniques.tasks.segmentation.masks import read_labels, read_mask

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.training.settings import PairedConfig, TrainingConfig


Target = Literal["masks", "labels", "images"]


@dataclass(frozen=True)
class PairFacts:
    """What was found in an image and its mask, or the image that it is to become.

    Attributes:
        pair: The files.
        size: Height and width.
        channels: Of the image, without alpha.
        dtype: Type of the image's samples.
        low: Smallest sample.
        high: Largest sample.
        counts: Pixels of each mask value; of labels, those with each, and under `IGNORED` those that do not count;
            empty for images.
        colours: Of each mask value, 0xRRGGBB, where the mask has a palette or was painted in colours.
        target_channels: Channels of the target; 1 for masks, the number of labels for those.
        largest_float: Largest magnitude of floating-point samples, of image or target; 0 where both are integers.
        digest: Of the image's samples.
        target_digest: Of those of the target.
        notes: What was converted on the way, in words.
        problem: Why the pair cannot be used, empty if it can.
    """

    pair: Pair
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    counts: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[int, int] = field(default_factory=dict)
    target_channels: int = 1
    largest_float: float = 0.0
    digest: str = ""
    target_digest: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Attributes:
        facts: Of each pair that can be used.
        notes: What a user should know, in words.
        decoded: What was read, as far as it was kept.
    """

    facts: tuple[PairFacts, ...]
    notes: tuple[str, ...]
    decoded: DecodedCache = field(default_factory=lambda: DecodedCache(MemoryBudget(0)), compare=False, repr=False)

    @property
    def channels(self) -> int:
        """Channels of all images."""
        return self.facts[0].channels

    @property
    def counts(self) -> Counter[int]:
        """Pixels of each mask value, over all masks."""
        return sum((Counter(facts.counts) for facts in self.facts), Counter())

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return sum(facts.size[0] * facts.size[1] for facts in self.facts)

    @property
    def digest(self) -> str:
        """SHA-256 of all images and their targets, in whatever order they came."""
        return hashlib.sha256("".join(sorted(f.digest + f.target_digest for f in self.facts)).encode()).hexdigest()

    @property
    def largest_float(self) -> float:
        """The largest magnitude of a sample of any floating-point image or target, 0 if there is none."""
        return max(facts.largest_float for facts in self.facts)

    @property
    def smallest(self) -> int:
        """The shortest side of any image, in pixels."""
        return min(min(facts.size) for facts in self.facts)

    @property
    def typical(self) -> int:
        """The shorter side that half of the images reach, in pixels."""
        return statistics.median_high(min(facts.size) for facts in self.facts)

    @property
    def largest(self) -> int:
        """The longest side of any image, in pixels."""
        return max(max(facts.size) for facts in self.facts)


def inspect_pairs(
    pairs: Sequence[Pair],
    console: Console,
    target: Target,
    channels: Channels = "declared",
    ignored: tuple[int, ...] = (),
    room: MemoryBudget | None = None,
    training: int | None = None,
) -> Inspection:
    """Read every image and its target once, in parallel.

    Args:
        pairs: The files.
        console: Where to show progress.
        target: What targets are.
        channels: Which samples of a pixel are channels; see `read_image`.
        ignored: Values of labels that do not count; see `read_labels`.
        room: Where what was read stays until it is needed again; nothing stays if not given.
        training: How many of the pairs, the first ones, are to be trained on: none of the others may be among them.

    Raises:
        FileError: Files cannot be used; the first ten are named with the reason, before anything is trained.
    """
    from rich.progress import track

    decoded = DecodedCache(room or MemoryBudget(0))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda pair: _inspect(pair, target, channels, ignored, decoded), pairs)
        facts = list(
            track(found, "reading", len(pairs), console=console, disable=not console.is_terminal, transient=True)
        )
    findings = [entry.problem for entry in facts if entry.problem]
    whole = [entry for entry in facts if not entry.problem]
    odd = mixture([(entry.pair.words(entry.pair.image), entry.channels) for entry in whole])
    findings += odd or mixture([(entry.pair.words(entry.pair.target), entry.target_channels) for entry in whole])
    if training is not None:
        sides = [
            [(entry.digest, entry.pair.words(entry.pair.image)) for entry in side if not entry.problem]
            for side in (facts[:training], facts[training:])
        ]
        findings += overlap(*sides)
    refuse(findings, len(pairs), str(pairs[0].image.parent))
    return Inspection(tuple(facts), tuple(_notes(facts, target)), decoded)


def find_and_inspect(
    config: PairedConfig,
    targets: str | None,
    val_targets: str | None,
    console: Console,
    target: Target,
    ignored: tuple[int, ...] = (),
) -> tuple[int, Inspection]:
    """Find and split the images and targets of a run, look at all of them, and tell what was found.

    Args:
        config: Settings.
        targets: Folder or pattern of the targets.
        val_targets: The same of those to validate on.
        console: Where to tell.
        target: What targets are.
        ignored: Values of labels that do not count.

    Returns:
        How many of the pairs, the first ones, are to be trained on; and all of them, inspected.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """
    training = find_pairs(config.images, targets, target == "labels")
    if config.val_images is None:
        training, validation = split_pairs(training, config.val_fraction, config.seed, config.group_regex)
    else:
        validation = find_pairs(config.val_images, val_targets, target == "labels")
    room = MemoryBudget(round(config.cache_gb * 1e9))
    pairs = [*training, *validation]
    inspection = inspect_pairs(pairs, console, target, channels_of(config), ignored, room, len(training))
    inspection = replace(inspection, notes=(*_stack_notes(training, validation), *inspection.notes))
    describe_images(inspection, console)
    console.print(f"{len(training)} images to train on, {len(validation)} to validate on")
    return len(training), inspection


def channels_of(config: TrainingConfig) -> Channels:
    """Return which samples of a pixel are channels in a run."""
    return config.channels or "declared"


def describe_images(inspection: Inspection, console: Console) -> None:
    """Show sizes, values and notes."""
    sizes = Counter(facts.size for facts in inspection.facts)
    common = ", ".join(f"{count} of {w}x{h}" for (h, w), count in sizes.most_common(3))
    low, high = min(facts.low for facts in inspection.facts), max(facts.high for facts in inspection.facts)
    kinds = ", ".join(sorted({facts.dtype for facts in inspection.facts}))
    console.print(
        f"{len(inspection.facts)} images ({common}{' …' if len(sizes) > 3 else ''}), {inspection.channels} channels, "
        f"{kinds}, values {low:g} to {high:g}"
    )
    for note in inspection.notes:
        console.print(f"note: {note}", markup=False)


def describe_classes(inspection: Inspection, classes: Classes, console: Console) -> None:
    """Show the shares of the classes."""
    from rich.table import Table

    heading = ("label", "channel") if classes.labels else ("class", "mask value")
    table = Table(*heading, "share of pixels", "images with it")
    for index, (name, share, present) in enumerate(class_shares(inspection, classes)):
        shown = f"all but {classes.values[0]}" if classes.foreground and index else str(classes.values[index])
        table.add_row(name, shown, f"{share:.2%}", str(present))
    if classes.ignored:
        left_out = (IGNORED,) if classes.labels else classes.ignored
        share = sum(inspection.counts[value] for value in left_out) / inspection.pixels
        table.add_row("ignored", ", ".join(map(str, classes.ignored)), f"{share:.2%}", "")
    console.print(table)


def class_shares(inspection: Inspection, classes: Classes) -> list[tuple[str, float, int]]:
    """Return of each class its name, its share of all pixels in [0, 1], and the number of images with it."""
    counts, rows = inspection.counts, []
    for index, name in enumerate(classes.names):
        inside = _values_of(index, classes, counts)
        share = sum(counts[value] for value in inside) / inspection.pixels
        present = sum(any(facts.counts.get(value) for value in inside) for facts in inspection.facts)
        rows.append((name, share, present))
    return rows


def mask_values(inspection: Inspection) -> list[tuple[str, Mapping[int, int]]]:
    """Return of each mask its file, as messages name it, and the pixels of each value, sorted by name."""
    found = [(facts.pair.words(facts.pair.target), facts.counts) for facts in inspection.facts]
    return sorted(found, key=lambda entry: entry[0])


def refuse_uncounted(inspection: Inspection, training: int, classes: Classes) -> None:
    """Raise `FileError` if no pixel counts on one side of the split.

    Args:
        inspection: Of all files.
        training: How many of the pairs, the first ones, are to be trained on.
        classes: What the masks mean.
    """
    left_out = (IGNORED,) if classes.labels else classes.ignored
    for use, side in (("train", inspection.facts[:training]), ("validate", inspection.facts[training:])):
        ignored = [sum(facts.counts.get(value, 0) for value in left_out) for facts in side]
        if all(count == facts.size[0] * facts.size[1] for count, facts in zip(ignored, side, strict=True)):
            named = first_of([facts.pair.words(facts.pair.target.name) for facts in side])
            reason = f"hold ignored pixels alone in all masks to {use} on: {named}."
            raise FileError("masks", reason, "Choose other images for that (--val-images, --seed), or ignore less.")


def painted(inspection: Inspection, classes: Classes) -> Classes:
    """Return classes with the colours that the masks give them, if all masks with a class agree on its colour."""
    if classes.labels or (classes.foreground and len(set(inspection.counts) - set(classes.ignored)) > 2):
        return classes
    found = {(value, colour) for facts in inspection.facts for value, colour in facts.colours.items()}
    known = dict(found)
    plain = any(facts.counts and not facts.colours for facts in inspection.facts)
    clear = len(known) == len(found) and len({known.get(value) for value in classes.values}) == classes.count
    if plain or not clear or None in map(known.get, classes.values):
        return classes
    return replace(classes, painted=tuple(known[value] for value in classes.values))


def _values_of(index: int, classes: Classes, counts: Mapping[int, int]) -> list[int]:
    if classes.foreground and index == 1:
        return [value for value in counts if value != classes.values[0] and value not in classes.ignored]
    return [classes.values[index]]


def read_pair(
    pair: Pair, kind: Target, channels: Channels, ignored: tuple[int, ...] = ()
) -> tuple[Picture, np.ndarray]:
    """Read an image and its target, `(height, width, channels)`.

    Args:
        pair: The files.
        kind: What the target is.
        channels: Which samples of a pixel are channels; see `read_image`.
        ignored: Values of labels that do not count; see `read_labels`.

    Raises:
        FileError: A file is broken.
    """
    picture = read_image(pair.image, channels=channels, page=pair.page)
    if kind == "masks":
        return picture, read_mask(pair.target, pair.page)[..., None]
    if kind == "labels":
        return picture, read_labels(pair.target, ignored, pair.page)
    if pair.target == pair.image:
        return picture, picture.pixels
    return picture, read_image(pair.target, channels=channels, page=pair.page).pixels


def _inspect(
    pair: Pair, kind: Target, channels: Channels, ignored: tuple[int, ...], decoded: DecodedCache
) -> PairFacts:
    try:
        picture, target = read_pair(pair, kind, channels, ignored)
        pixels, alpha = picture.pixels, () if picture.alpha is None else ("alpha left out",)
    except ConvUNextError as error:
        return PairFacts(pair, problem=str(error))
    for path, array in ((pair.image, pixels), (pair.target, target)):
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            problem = f"{pair.words(path)}: holds {count} samples that are NaN or infinite. Repair them."
            return PairFacts(pair, problem=problem)
    if pixels.shape[:2] != target.shape[:2]:
        (h, w), (other_h, other_w) = pixels.shape[:2], target.shape[:2]
        place, name = pair.words(pair.target), pair.image.name
        problem = f"{place}: is {other_w}x{other_h} pixels, its image {name} {w}x{h}. Resize one."
        return PairFacts(pair, problem=problem)
    decoded.keep(pair, pixels, target)
    counts = _count(target, kind)
    return PairFacts(
        pair,
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=str(pixels.dtype),
        low=float(pixels.min()),
        high=float(pixels.max()),
        counts=counts,
        colours=mask_colours(pair.target, counts) if kind == "masks" else {},
        target_channels=target.shape[2],
        largest_float=max(float(np.abs(x).max()) if x.dtype.kind == "f" else 0.0 for x in (pixels, target)),
        digest=(digest := _digest(pixels)),
        target_digest=digest if target is pixels else _digest(target),
        notes=(*picture.notes, *alpha),
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _count(target: np.ndarray, kind: Target) -> dict[int, int]:
    if kind == "labels":
        found = {label: int((target[..., label] == 1).sum()) for label in range(target.shape[2])}
        found[IGNORED] = int((target[..., 0] == IGNORED).sum())
        return {value: count for value, count in found.items() if count}
    values, counts = np.unique(target if kind == "masks" else np.zeros(0, "int32"), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _stack_notes(training: Sequence[Pair], validation: Sequence[Pair]) -> list[str]:
    stacks = {pair.image for pair in (*training, *validation) if pair.page is not None}
    shared = stacks & {pair.image for pair in training} & {pair.image for pair in validation}
    if not stacks:
        return []
    if not shared:
        return [f"{len(stacks)} stacks: all pages of each are on one side, trained on or validated on"]
    first, last = validation[0].name, validation[-1].name
    return [
        f"one stack is all there is: its pages {first} to {last} are validated on, and look like their neighbours; "
        "name --val-images from elsewhere for figures that hold elsewhere"
    ]


def _notes(facts: Sequence[PairFacts], target: Target) -> list[str]:
    converted = Counter(note for entry in facts for note in entry.notes)
    notes = [f"{note}: {count} of {len(facts)} images" for note, count in converted.items()]
    seen: dict[str, str] = {}
    for entry in facts:
        name = entry.pair.words(entry.pair.image.name)
        if entry.digest in seen:
            notes.append(f"{name} and {seen[entry.digest]} are the same image")
        seen.setdefault(entry.digest, name)
    if flat := [entry.pair.words(entry.pair.image.name) for entry in facts if entry.low == entry.high]:
        notes.append(f"{len(flat)} images are of one value: {first_of(flat)}")
    dull = {"masks": lambda counts: len(counts) == 1, "labels": lambda counts: not set(counts) - {IGNORED}}.get(target)
    if dull and (empty := [entry.pair.words(entry.pair.target.name) for entry in facts if dull(entry.counts)]):
        held = "one value only" if target == "masks" else "no label"
        notes.append(f"{len(empty)} masks hold {held}: {first_of(empty)}")
    return notes
