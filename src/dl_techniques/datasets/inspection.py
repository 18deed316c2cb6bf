"""A look at a data set before anything is trained: every file is opened and read once, and what is wrong is named."""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dl_techniques.datasets.checks import mixture, overlap, refuse, turned_alike
from dl_techniques.datasets.lazy import DecodedCache, MemoryBudget
from dl_techniques.datasets.pairs import Pair, find_pairs, split_pairs
from dl_techniques.datasets.targets import ImageReader, PairFacts, TargetReader
from dl_techniques.errors import ConvUNextError, first_of
from dl_techniques.images.files import open_image, print_left_out
from dl_techniques.images.source import Channels, ImageSource

if TYPE_CHECKING:
    from rich.console import Console


class DataSettings(Protocol):
    """Settings that say which images and targets a run is on; see the settings of a training."""

    @property
    def images(self) -> str: ...
    @property
    def val_images(self) -> str | None: ...
    @property
    def val_fraction(self) -> float: ...
    @property
    def group_regex(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def cache_gb(self) -> float: ...


Split = Callable[[list[Pair]], tuple[list[Pair], list[Pair]]]


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Attributes:
        facts: Of each pair that can be used.
        notes: What a user should know, in words.
        decoded: What was read, as far as the memory allows.
        training: How many of the facts, the first ones, are of pairs to train on; the others are to validate on.
        reader: Reads the targets.
        read_as: Which samples of a pixel are channels; see `ImageSource.read`.
    """

    facts: tuple[PairFacts, ...]
    notes: tuple[str, ...]
    decoded: DecodedCache = field(default_factory=lambda: DecodedCache(MemoryBudget(0)), compare=False, repr=False)
    training: int = 0
    reader: TargetReader = field(default_factory=ImageReader, compare=False, repr=False)
    read_as: Channels = "declared"

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Return image and target of a pair, from memory where they are still there."""
        return self.decoded.pop(pair) or read_pair(pair, self.reader, self.read_as)

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, a page each."""
        return [facts.pair for facts in self.facts]

    @property
    def channels(self) -> int:
        """Channels of all images."""
        return self.facts[0].channels

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
    reader: TargetReader,
    channels: Channels = "declared",
    budget: MemoryBudget | None = None,
    validation: Sequence[Pair] | Split = (),
) -> Inspection:
    """Open and read every image and its target once, in parallel; the pages of stacks become pairs of their own.

    What was read stays in memory as far as the budget allows. `validation` is pairs that must not be among `pairs`, or
    what splits the pages of `pairs`.

    Raises:
        FileError: Files cannot be used; the first ten are named with the reason, before anything is trained.
        ArgumentError: The pages cannot be split.
    """
    from rich.progress import track

    decoded = DecodedCache(budget or MemoryBudget(0))
    split = validation if callable(validation) else None
    files = [*pairs, *(() if callable(validation) else validation)]

    def read(reader: TargetReader) -> list[list[PairFacts]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda pair: _inspect_file(pair, reader, channels, decoded), files)
            hidden = not console.is_terminal
            return list(track(found, "reading", len(files), console=console, disable=hidden, transient=True))

    pages = read(reader)
    settled = reader.settle([entry for entries in pages for entry in entries if not entry.problem])
    if settled != reader:  # all files together say that each is to be read in another way
        decoded.clear()
        pages, reader = read(settled), settled
    sides = [[entry for entries in side for entry in entries] for side in (pages[: len(pairs)], pages[len(pairs) :])]
    facts = [*sides[0], *sides[1]]
    usable = [entry for entry in facts if not entry.problem]
    findings = [entry.problem for entry in facts if entry.problem]
    odd = mixture([(entry.pair.words(entry.pair.image), entry.channels) for entry in usable])
    findings += odd or mixture([(entry.pair.words(entry.pair.target), entry.target_channels) for entry in usable])
    if split is not None:
        by_pair = {entry.pair: entry for entry in facts}
        try:
            sides = [[by_pair[pair] for pair in side] for side in split(list(by_pair))]
        except ConvUNextError:
            refuse(findings, len(facts), str(pairs[0].image.parent))
            raise
    # Images of one value, such as tiles of background, are the same without coming from one place.
    named = [[(e.digest, e.pair.words(e.pair.image)) for e in side if not (e.problem or e.flat)] for side in sides]
    findings += overlap(named[0], named[1])
    refuse(findings, len(facts), str(pairs[0].image.parent))
    notes = (*_stack_notes(sides[0], sides[1]), *_notes(facts), *reader.notes(facts))
    return Inspection((*sides[0], *sides[1]), notes, decoded, len(sides[0]), reader, channels)


def find_and_inspect(
    config: DataSettings, targets: str | None, val_targets: str | None, console: Console, reader: TargetReader
) -> Inspection:
    """Find the images and targets of a run, read and split them, and print what was found.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """

    def split(pages: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        return split_pairs(pages, config.val_fraction, config.seed, config.group_regex)

    pairs = find_pairs(config.images, targets, reader.alpha)
    validation = split if config.val_images is None else find_pairs(config.val_images, val_targets, reader.alpha)
    print_left_out(console, config.images, targets, config.val_images, val_targets)
    budget = MemoryBudget(round(config.cache_gb * 1e9))
    inspection = inspect_pairs(pairs, console, reader, config.channels or "declared", budget, validation)
    describe_images(inspection, console)
    return inspection


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
    if held_out := len(inspection.facts) - inspection.training:
        console.print(f"{inspection.training} images to train on, {held_out} to validate on")


def read_pair(pair: Pair, reader: TargetReader, channels: Channels) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its target again, each `(height, width, channels)`; raises `FileError` for a broken one."""
    with _opened(pair) as (image, target):
        picture = image.read(pair.page, channels)
        found, held = reader.read(target, pair.page, channels, picture if target is image else None)
        return picture.pixels, turned_alike(pair, picture, found, held)


@contextlib.contextmanager
def _opened(pair: Pair) -> Iterator[tuple[ImageSource, ImageSource]]:
    """Open an image and its target; where they are one file, once."""
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(open_image(pair.image))
        yield image, image if pair.target == pair.image else stack.enter_context(open_image(pair.target))


def _inspect_file(pair: Pair, reader: TargetReader, channels: Channels, decoded: DecodedCache) -> list[PairFacts]:
    """Return what was found on each page of a file."""
    try:
        with _opened(pair) as (image, target):
            count, others = image.count, target.count
            if count != others and not (reader.pages_are_channels and count == 1):
                held, holds = (f"{pages} page{'s' * (pages > 1)}" for pages in (count, others))
                problem = f"{pair.target}: holds {holds}, its image {pair.image} {held}. {reader.pages}"
                return [PairFacts(pair, problem=problem)]
            pages = [pair] if count == 1 else [replace(pair, page=number) for number in range(count)]
            return [_inspect_page(page, image, target, reader, channels, decoded) for page in pages]
    except ConvUNextError as error:
        return [PairFacts(pair, problem=str(error))]


def _inspect_page(
    pair: Pair, image: ImageSource, source: ImageSource, reader: TargetReader, channels: Channels, decoded: DecodedCache
) -> PairFacts:
    try:
        picture = image.read(pair.page, channels)
        found, held = reader.read(source, pair.page, channels, picture if source is image else None)
        target = turned_alike(pair, picture, found, held)
    except ConvUNextError as error:
        return PairFacts(pair, problem=str(error))
    pixels = picture.pixels
    for path, array in ((pair.image, pixels), (pair.target, target)):
        if count := int((~np.isfinite(array)).sum()):
            problem = f"{pair.words(path)}: holds {count} samples that are NaN or infinite. Repair them."
            return PairFacts(pair, problem=problem)
    if pixels.shape[:2] != target.shape[:2]:
        (h, w), (other_h, other_w) = pixels.shape[:2], target.shape[:2]
        place, name = pair.words(pair.target), pair.image.name
        problem = f"{place}: is {other_w}x{other_h} pixels, its image {name} {w}x{h}. Resize one."
        return PairFacts(pair, problem=problem)
    decoded.put(pair, pixels, target)
    return PairFacts(
        pair,
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=str(pixels.dtype),
        low=float(pixels.min()),
        high=float(pixels.max()),
        found=reader.describe(target, held),
        target_channels=target.shape[2],
        largest_float=max(float(np.abs(x).max()) if x.dtype.kind == "f" else 0.0 for x in (pixels, target)),
        digest=(digest := _digest(pixels)),
        target_digest=digest if target is pixels else _digest(target),
        notes=(
            *picture.notes,
            *(() if picture.alpha is None or reader.alpha else ("alpha left out",)),
            *(() if target is found else ("target turned upright like its image",)),
        ),
        flat=bool((pixels == pixels[:1, :1]).all()),
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _stack_notes(training: Sequence[PairFacts], validation: Sequence[PairFacts]) -> list[str]:
    sides = [{entry.pair.image for entry in side if entry.pair.page is not None} for side in (training, validation)]
    stacks, shared = sides[0] | sides[1], sides[0] & sides[1]
    if not stacks or not validation:
        return []
    if not shared:
        return [f"{len(stacks)} stacks: all pages of a stack are in training or all in validation"]
    first, last = validation[0].pair.name, validation[-1].pair.name
    return [
        f"only one stack: its pages {first} to {last} are the validation set, and resemble the training pages next to "
        "them; give --val-images from another stack to measure generalization"
    ]


def _notes(facts: Sequence[PairFacts]) -> list[str]:
    converted = Counter(note for entry in facts for note in entry.notes)
    notes = [f"{note}: {count} of {len(facts)} images" for note, count in converted.items()]
    seen: dict[str, str] = {}
    for entry in facts:
        name = entry.pair.words(entry.pair.image.name)
        if entry.digest in seen and not entry.flat:
            notes.append(f"{name} and {seen[entry.digest]} are the same image")
        seen.setdefault(entry.digest, name)
    if flat := [entry.pair.words(entry.pair.image.name) for entry in facts if entry.flat]:
        notes.append(f"{len(flat)} images are constant: {first_of(flat)}")
    return notes
