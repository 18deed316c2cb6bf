"""Images and what belongs to each, found by name, without opening them; splits that keep groups together."""

from __future__ import annotations

import csv
import glob
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.images.files import find_images


@dataclass(frozen=True)
class Pair:
    """An image and its target.

    Attributes:
        image: Image file.
        target: File of the mask, or of the image to restore.
        page: Page of both, from 0, where they are stacks.
    """

    image: Path
    target: Path
    page: int | None = None

    @property
    def name(self) -> str:
        """Stem of the image's file, and the page of a stack: `scan-0007`."""
        return self.image.stem if self.page is None else f"{self.image.stem}-{self.page:04d}"

    def words(self, path: str | Path) -> str:
        """Return one of the files as messages name it, with its page."""
        return str(path) if self.page is None else f"{path}, page {self.page + 1}"


def find_files(source: str) -> list[Path]:
    """Return the image files of a folder, of a pattern with `*`, `?` or `[…]`, or the one file named, sorted by name.

    Raises:
        FileError: There is none.
    """
    if any(sign in source for sign in "*?[") and not Path(source).exists():
        found = sorted(Path(path) for path in glob.glob(source, recursive=True))
        if not found:
            raise FileError(source, "matches no file.", "Check the pattern, and quote it against the shell.")
        return find_images(found)
    return find_images([source])


def find_singles(images: str) -> list[Pair]:
    """Return each image of a folder or pattern, or of a CSV file's column `image`, as its own target."""
    if images.lower().endswith(".csv"):
        return _read_csv(Path(images), "image", "image")
    return [Pair(path, path) for path in find_files(images)]


def find_pairs(images: str, targets: str | None = None) -> list[Pair]:
    """Match images with their targets.

    A target has the stem of its image, or that stem and an ending that all targets share (`a.png` and `a_mask.png`).

    Args:
        images: Folder or pattern; or a CSV file with columns `image` and `target`, paths relative to it.
        targets: Folder or pattern; `None` with a CSV file.

    Raises:
        FileError: Something has no counterpart, or two; the first ten are named.
        ArgumentError: `targets` is missing, or given with a CSV file.
    """
    if images.lower().endswith(".csv"):
        if targets is not None:
            raise ArgumentError("targets", "must not be given with a CSV file, which names them", targets)
        return _read_csv(Path(images))
    if targets is None:
        raise ArgumentError("targets", "must name the folder of targets, unless `images` is a CSV file", targets)
    by_stem, targets_by_stem = _by_stem(find_files(images)), _by_stem(find_files(targets))
    ending = _shared_ending(list(by_stem), list(targets_by_stem))
    missing = [path for stem, path in by_stem.items() if stem + ending not in targets_by_stem]
    left = [path for stem, path in targets_by_stem.items() if stem not in {name + ending for name in by_stem}]
    if missing:
        also = f", and {len(left)} targets without an image: {_list_of(left)}" if left else ""
        reason = f"has no target for {_list_of(missing)}{also}"
        remedy = "Add the targets, name them like their images, or remove the images."
        raise FileError(targets, f"{reason}.", remedy)
    if left:
        raise FileError(images, f"has no image for {_list_of(left)}.", "Add the images or remove the targets.")
    return [Pair(path, targets_by_stem[stem + ending]) for stem, path in by_stem.items()]


def split_pairs(
    pairs: Sequence[Pair], fraction: float, seed: int, group_regex: str | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Split into training and validation; a pair's side depends on its group's name and the seed, not on the others.

    The pages of a stack stay together. Where one stack is all there is, a block of neighbouring pages is validated on.

    Args:
        pairs: At least two groups of them.
        fraction: Share of the groups to validate on, in (0, 1).
        seed: Seed.
        group_regex: Pairs stay together whose file's stem gives the same first group of this pattern (or the same
            match), such as the frames of one film; every file is a group of its own if not given.

    Raises:
        ArgumentError: The pattern is broken or does not match a name, or one group is all there is.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_group_of(pair.image.stem, group_regex), []).append(pair)
    if len(groups) < 2 and len(pairs) > 1 and group_regex is None:
        return _split_stack(pairs, fraction, seed)
    if len(groups) < 2:
        remedy = "Add images, or name those to validate on with --val-images."
        if group_regex is None:
            rule = "must be at least two images, one to train on and one to validate on"
            raise ArgumentError("images", rule, str(pairs[0].image), remedy)
        rule = f"must give at least two groups to split; all {len(pairs)} images are in one"
        raise ArgumentError("group_regex", rule, group_regex, remedy)
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    held_out = set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])
    sides = [[p for name, members in groups.items() if (name in held_out) == side for p in members] for side in (0, 1)]
    return sides[0], sides[1]


def _split_stack(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Hold out one block of neighbours: pages look like those beside them, which must not all be trained on."""
    held_out = min(max(1, round(fraction * len(pairs))), len(pairs) - 1)
    places = range(0, len(pairs) - held_out + 1, held_out)
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{pairs[0].image.stem}".encode()).digest()[:8], "big")
    first = places[draw % len(places)]
    return [*pairs[:first], *pairs[first + held_out :]], list(pairs[first : first + held_out])


def _group_of(name: str, group_regex: str | None) -> str:
    if group_regex is None:
        return name
    try:
        match = re.search(group_regex, name)
    except re.error as error:
        raise ArgumentError("group_regex", f"must be a regular expression ({error})", group_regex) from error
    if match is None:
        raise ArgumentError("group_regex", f"must match every name; it does not match {name!r}", group_regex)
    return match[1] if match.re.groups else match[0]


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twins: list[tuple[Path, Path]] = []
    for path in paths:
        if path.stem in found:
            twins.append((path, found[path.stem]))
        found.setdefault(path.stem, path)
    if twins:
        (path, other), *rest = twins
        also = f"; so have {first_of([f'{a.name} and {b.name}' for a, b in rest])}" if rest else ""
        raise FileError(str(path), f"has the same stem as {other.name}{also}.", "Rename one of each two.")
    return found


def _shared_ending(stems: Sequence[str], targets: Sequence[str]) -> str:
    """Return what every target's stem has beyond that of an image: nothing, or the same for all."""
    if set(stems) & set(targets):
        return ""
    known = set(stems)
    candidates = {target[len(stem) :] for target in targets[:1] for stem in known if target.startswith(stem)}
    return next((ending for ending in candidates if all(t.removesuffix(ending) in known for t in targets)), "")


def _read_csv(path: Path, image: str = "image", target: str = "target") -> list[Pair]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Save it as a CSV file in UTF-8.") from error
    if not rows or not {image, target} <= rows[0].keys():
        named = " and ".join(f"'{name}'" for name in dict.fromkeys((image, target)))
        raise FileError(str(path), f"has no rows with columns {named}.", "Add them.")
    if short := [str(number) for number, row in enumerate(rows, 2) if not (row[image] and row[target])]:
        raise FileError(str(path), f"names no file in the rows {first_of(short)}.", "Fill or delete them.")
    pairs = [Pair(path.parent / row[image], path.parent / row[target]) for row in rows]
    files = dict.fromkeys(file for pair in pairs for file in (pair.image, pair.target))
    if missing := [file for file in files if not file.is_file()]:
        raise FileError(str(path), f"names files that do not exist: {_list_of(missing)}.", "Correct the paths.")
    _by_stem([pair.image for pair in pairs])
    return pairs


def _list_of(paths: Sequence[Path]) -> str:
    return first_of([path.name for path in paths])
