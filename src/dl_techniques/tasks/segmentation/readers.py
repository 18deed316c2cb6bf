"""Readers of masks, and how the values of all masks of a data set are to be read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dl_techniques.datasets.targets import PairFacts, TargetReader
from dl_techniques.errors import FileError, first_of
from dl_techniques.images.source import Channels, ImageSource, Picture
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes, value_names
from dl_techniques.tasks.segmentation.masks import INVERTED, Reading, alpha_from, grey_factor, labels_from, mask_from

READINGS: tuple[Reading, ...] = ("stored", "grey", "colours")
FULL_SCALE = frozenset({1, 255, 65535})  # what tools write for "inside" in masks of 1, 8 and 16 bits


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds.

    Attributes:
        counts: Pixels of each value or label (`IGNORED`: that do not count).
        colours: Colour, 0xRRGGBB, of each value, where there are any.
        encoding: How values are stored, in words: palette, colours, or grey of so many bits.
        meanings: In each reading, what each stored value becomes; a reading that cannot hold them is not there.
        inverted: Whether 0 is white in the file.
        solid: Values that fill a square of 3x3 pixels somewhere.
        scattered: Values, but for the most frequent, that form more than one connected region.
    """

    counts: Mapping[int, int]
    colours: Mapping[int, int] = field(default_factory=dict)
    encoding: str = ""
    meanings: Mapping[Reading, Mapping[int, int]] = field(default_factory=dict)
    inverted: bool = False
    solid: frozenset[int] = frozenset()
    scattered: int = 0


@dataclass(frozen=True)
class MaskReader(TargetReader):
    """Reads masks of which each pixel has one value; see `mask_from`.

    Args:
        reading: How values become numbers.
        known: Classes that masks must have; `None` where masks say which there are.
    """

    reading: Reading = "stored"
    known: Classes | None = None

    pages = "A stack needs a target of as many pages; pages that are labels need --mask-kind labels."

    def read(
        self, source: ImageSource, page: int | None, channels: Channels, image: Picture | None
    ) -> tuple[np.ndarray, Picture]:
        mask, picture = mask_from(source, page, self.reading)
        return mask[..., None], picture

    def describe(self, target: np.ndarray, picture: Picture) -> MaskFacts:
        mask = target[..., 0]
        values, counts = (found.tolist() for found in np.unique(mask, return_counts=True))
        stored = self.reading == "stored"
        kind = "palette" if picture.palette is not None else "colours" if picture.pixels.shape[2] > 1 else "grey"
        bits = picture.bits or 8 * picture.pixels.dtype.itemsize
        return MaskFacts(
            dict(zip(values, counts, strict=True)),
            colours_of(picture, values) if stored else dict(zip(values, values, strict=True)) if self._painted else {},
            f"grey of {bits} bits" if kind == "grey" else kind,
            _meanings(values, picture) if stored else {},
            INVERTED in picture.notes,
            _solid(mask, values),
            _scattered(mask, values),
        )

    def settle(self, facts: Sequence[PairFacts]) -> TargetReader:
        """Return a reader of all masks alike: in the reading that gives the fewest values over all of them.

        Palettes that differ are read by their colours.
        """
        if not facts or self.reading != "stored":
            return self
        if self.known is not None:
            return self if self.known.foreground else replace(self, reading=_fitting(facts, self.known))
        _check_inverted(facts)
        conflict = _conflict(facts)
        options: dict[Reading, set[int]] = {
            reading: found for reading in READINGS if (found := _values(facts, reading)) is not None
        }
        if conflict is not None:
            del options["stored"]
        elif len({entry.found.encoding for entry in facts}) == 1:
            return self
        reading: Reading = "stored"
        if options:
            reading = min(options, key=lambda name: len(options[name]))
        if conflict is None:
            _check_agreement(facts, reading)
        elif not options:
            raise conflict
        return replace(self, reading=reading)

    def notes(self, facts: Sequence[PairFacts]) -> list[str]:
        entries = [entry for entry in facts if entry.found]
        inverted = [entry.pair.words(entry.pair.target.name) for entry in entries if entry.found.inverted]
        encodings = Counter(entry.found.encoding for entry in entries)
        notes = _empty(entries, "one value only", lambda counts: len(counts) == 1)
        if inverted:
            notes.append(f"0 is white in {len(inverted)} masks, which are read as they look: {first_of(inverted)}")
        if self.reading != "stored":
            how = "by their colours" if self.reading == "colours" else "by their grey values of 0 to 255"
            told = ", ".join(f"{count} {encoding}" for encoding, count in encodings.items())
            notes.append(f"masks are read {how}, since they are stored differently: {told}")
        return notes + _apart(entries)

    @property
    def _painted(self) -> bool:
        return self.reading == "colours"


@dataclass(frozen=True)
class AlphaReader(MaskReader):
    """Reads masks from the alpha of files; see `alpha_from`."""

    alpha = True

    def read(
        self, source: ImageSource, page: int | None, channels: Channels, image: Picture | None
    ) -> tuple[np.ndarray, Picture]:
        mask, picture = alpha_from(source, page, image)
        return mask[..., None], replace(picture, pixels=mask[..., None], palette=None, notes=(), bits=1)

    def settle(self, facts: Sequence[PairFacts]) -> TargetReader:
        return self


@dataclass(frozen=True)
class LabelReader(TargetReader):
    """Reads labels that may overlap; see `labels_from`.

    Args:
        ignored: Values of pixels that do not count.
    """

    ignored: tuple[int, ...] = ()
    pages_are_channels = True

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


def reader_of(classes: Classes) -> MaskReader | LabelReader:
    """Return what reads the masks of known classes."""
    if classes.labels:
        return LabelReader(classes.ignored)
    return AlphaReader() if classes.alpha else MaskReader(known=classes)


def colours_of(picture: Picture, values: Iterable[int]) -> dict[int, int]:
    """Return the colour, 0xRRGGBB, of each value of a mask with a palette or painted in colours; none of a grey one."""
    if picture.palette is None:
        return {value: value for value in values} if picture.pixels.shape[2] >= 3 else {}
    colours = _entries(picture, values)
    grey = all(_grey(colour) is not None for colour in colours.values())  # a ramp, which shows nothing
    return {} if grey else colours


def is_full_scale(facts: Sequence[PairFacts], ignored: Sequence[int]) -> bool:
    """Return whether masks hold 0 and one other value each, which is 1 in some and the largest of its type in others.

    They are binary masks of several tools.
    """
    inside = [set(entry.found.counts) - {0, *ignored} for entry in facts]
    return len(set().union(*inside)) > 1 and all(len(found) <= 1 and found <= FULL_SCALE for found in inside)


def are_instances(facts: Sequence[PairFacts]) -> bool:
    """Return whether most values form one region in their mask, as numbered objects do."""
    values = sum(len(entry.found.counts) - 1 for entry in facts)
    return sum(entry.found.scattered for entry in facts) <= values / 4


def soft_values(facts: Sequence[PairFacts]) -> list[int]:
    """Return the values that occur only in lines between others in all masks: smoothed edges consist of them."""
    values = set().union(*(entry.found.counts for entry in facts))
    solid = frozenset().union(*(entry.found.solid for entry in facts))
    return sorted(values - solid) if len(solid) > 1 else []


def _meanings(values: Sequence[int], picture: Picture) -> dict[Reading, dict[int, int]]:
    found: dict[Reading, dict[int, int]] = {"stored": {value: value for value in values}}
    if picture.palette is not None or picture.pixels.shape[2] > 1:
        colours = {value: value for value in values} if picture.palette is None else _entries(picture, values)
        found["colours"] = colours
        greys = {value: grey for value, colour in colours.items() if (grey := _grey(colour)) is not None}
        if len(greys) == len(values):
            found["grey"] = greys
        return {reading: numbers for reading, numbers in found.items() if len(numbers) == len(values)}
    found["grey"] = {value: value * grey_factor(picture, "grey") for value in values}
    if picture.pixels.dtype == np.uint8:
        found["colours"] = {value: value * grey_factor(picture, "colours") for value in values}
    return found


def _entries(picture: Picture, values: Iterable[int]) -> dict[int, int]:
    """Return the colours that a palette gives values, 0xRRGGBB."""
    entries = [] if picture.palette is None else picture.palette.tolist()
    return {v: entries[v][0] << 16 | entries[v][1] << 8 | entries[v][2] for v in values if v < len(entries)}


def _grey(colour: int) -> int | None:
    return colour & 255 if colour == (colour & 255) * 0x010101 else None


def _solid(mask: np.ndarray, values: Sequence[int]) -> frozenset[int]:
    if len(values) <= 2:
        return frozenset(values)
    row = (mask[:, 1:-1] == mask[:, :-2]) & (mask[:, 1:-1] == mask[:, 2:])
    column = (mask[1:-1] == mask[:-2]) & (mask[1:-1] == mask[2:])
    inside = row[1:-1] & row[:-2] & row[2:] & column[:, 1:-1]
    return frozenset(np.unique(mask[1:-1, 1:-1][inside]).tolist())


def _scattered(mask: np.ndarray, values: Sequence[int]) -> int:
    if len(values) <= 2:
        return 0
    from skimage.measure import label

    regions = label(mask, background=-(2**31), connectivity=2)
    first = np.unique(regions, return_index=True)[1]
    pieces = Counter(mask.ravel()[first].tolist())
    return sum(count > 1 for count in pieces.values()) - (max(pieces.values()) > 1)


def _values(facts: Sequence[PairFacts], reading: Reading) -> set[int] | None:
    """Return the values of all masks in a reading; `None` where one cannot be read so."""
    found = [entry.found.meanings.get(reading) for entry in facts]
    if None in found:
        return None
    return {value for numbers in found if numbers is not None for value in numbers.values()}


def _fitting(facts: Sequence[PairFacts], classes: Classes) -> Reading:
    """Return the first reading in which masks hold values of the classes only."""
    known = {*classes.values, *classes.ignored}
    options: list[Reading] = [
        reading for reading in READINGS if (found := _values(facts, reading)) is not None and found <= known
    ]
    if options[:1] == ["stored"] and _conflict(facts) is not None:
        options = options[1:]
    return options[0] if options else "stored"


def _conflict(facts: Sequence[PairFacts]) -> FileError | None:
    """Return what to say where two palettes give an index that both use different colours."""
    seen: dict[int, tuple[int, str]] = {}
    for entry in facts:
        if entry.found.encoding != "palette":
            continue
        name = entry.pair.words(entry.pair.target)
        for index, colour in entry.found.meanings.get("colours", {}).items():
            other, place = seen.setdefault(index, (colour, name))
            if other != colour:
                reason = f"shows index {index} as #{colour:06x}; {place} shows it as #{other:06x}."
                return FileError(name, reason, "Save all masks with one palette.")
    return None


def _check_agreement(facts: Sequence[PairFacts], reading: Reading) -> None:
    """Raise `FileError` where masks of two encodings have nothing in common but the background."""
    groups: dict[str, tuple[set[int], str]] = {}
    for entry in facts:
        values, _ = groups.setdefault(entry.found.encoding, (set(), entry.pair.words(entry.pair.target)))
        values |= set(entry.found.meanings.get(reading, entry.found.counts).values())
    for (kind, (values, name)), (other, (others, place)) in itertools.combinations(groups.items(), 2):
        inside = (values - others, others - values)
        if all(inside) and values & others <= {0} and not (values | others) <= {0, *FULL_SCALE}:
            told = [first_of(value_names(sorted(found))) for found in inside]
            reason = f"({kind}) holds the values {told[0]}; {place} ({other}) holds {told[1]} instead."
            raise FileError(name, reason, "Save all masks in one way.")


def _check_inverted(facts: Sequence[PairFacts]) -> None:
    """Raise `FileError` where the most frequent value of masks with 0 as white is not that of the other masks."""
    sides: dict[bool, tuple[Counter[int], str]] = {}
    for entry in facts:
        counts, _ = sides.setdefault(entry.found.inverted, (Counter(), entry.pair.words(entry.pair.target)))
        counts.update({value > 0: count for value, count in entry.found.counts.items()})
    if len(sides) == 2 and len({counts.most_common(1)[0][0] for counts, _ in sides.values()}) == 2:
        reason = f"has 0 as white and looks like the reverse of {sides[False][1]}."
        raise FileError(sides[True][1], reason, "Save all masks with 0 as black.")


def _apart(facts: Sequence[PairFacts]) -> list[str]:
    """Return a note where each mask holds one of two values, never both: they may be one thing, stored differently."""
    names: dict[int, list[str]] = {}
    for entry in facts:
        inside = set(entry.found.counts) - {0}
        if len(inside) > 1:
            return []
        for value in inside:
            names.setdefault(value, []).append(entry.pair.words(entry.pair.target.name))
    if len(names) < 2 or set(names) <= FULL_SCALE:
        return []
    held = sorted(names)
    told = [f"{name} in {first_of(names[value])}" for value, name in zip(held, value_names(held), strict=True)]
    return [f"no mask holds two of the values: {'; '.join(told)}"]


def _empty(facts: Sequence[PairFacts], held: str, test: Callable[[Mapping[int, int]], bool]) -> list[str]:
    empty = [entry.pair.words(entry.pair.target.name) for entry in facts if entry.found and test(entry.found.counts)]
    return [f"{len(empty)} masks hold {held}: {first_of(empty)}"] if empty else []
