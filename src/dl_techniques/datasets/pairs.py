"""Images and what belongs to each, found by name, without opening them; splits that keep groups together."""

from __future__ import annotations

import glob
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from dl_techniques.datasets.pair_list import read_pair_list
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.images.files import find_images


@dataclass(frozen=True)
class Pair:
    """An image and its target.

    Attributes:
        image: Image file.
        target: File of the mask, or of the image to restore.
        page: Page of both, from 0, where they are stacks.
        file_name: What tells the image's file from the others of the data set; its stem if not given.
    """

    image: Path
    target: Path
    page: int | None = None
    file_name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.file_name:
            object.__setattr__(self, "file_name", self.image.stem)

    @property
    def name(self) -> str:
        """Name of the image's file, and the page of a stack: `scan-0007`."""
        return self.file_name if self.page is None else f"{self.file_name}-{self.page:04d}"

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
        return _named([(image, image) for (image,) in read_pair_list(Path(images), ("image",))])
    return _named([(path, path) for path in find_files(images)])


def find_pairs(images: str, targets: str | None = None, own: bool = False) -> list[Pair]:
    """Match images with their targets.

    A target has the name of its image, or that name and an ending that all targets share (`a.png` and `a_mask.png`).
    Names are what tells the files of each side apart, see `distinct_names`: of `p1/image.png`, `p2/image.png` the
    folder.

    Args:
        images: Folder or pattern; or a CSV file with columns `image` and `target`, paths relative to it.
        targets: Folder or pattern; `None` with a CSV file.
        own: Whether the target is a part of the image's file where `targets` is `None`.

    Raises:
        FileError: Something has no counterpart, or two; the first ten are named.
        ArgumentError: `targets` is missing, or given with a CSV file.
    """
    if images.lower().endswith(".csv"):
        if targets is not None:
            raise ArgumentError("targets", "must not be given with a CSV file, which names them", targets)
        return _named([(image, target) for image, target in read_pair_list(Path(images), ("image", "target"))])
    if targets is None and own:
        return find_singles(images)
    if targets is None:
        raise ArgumentError("targets", "must name the folder of targets, unless `images` is a CSV file", targets)
    by_name, targets_by_name = _by_name(find_files(images)), _by_name(find_files(targets))
    ending = _shared_ending(list(by_name), list(targets_by_name))
    missing = [path for name, path in by_name.items() if name + ending not in targets_by_name]
    left = [path for name, path in targets_by_name.items() if name not in {known + ending for known in by_name}]
    if missing:
        also = f", and {len(left)} targets without an image: {_list_of(left)}" if left else ""
        reason = f"has no target for {_list_of(missing)}{also}"
        remedy = "Add the targets, name them like their images, or remove the images."
        raise FileError(targets, f"{reason}.", remedy)
    if left:
        raise FileError(images, f"has no image for {_list_of(left)}.", "Add the images or remove the targets.")
    return [Pair(path, targets_by_name[name + ending], file_name=name) for name, path in by_name.items()]


def distinct_names(paths: Sequence[PurePath]) -> list[str]:
    """Return the shortest part of each path that tells files apart: their stems, where no two are the same.

    Otherwise the parts of the path, without suffix, in which they differ: `p1`, `p2` of `p1/scan.png`, `p2/scan.png`;
    `p1/a`, `p2/a` of `p1/raw/a.png`, `p2/raw/a.png`. Characters are composed (NFC), however a file system has them.
    """
    parts = [unicodedata.normalize("NFC", path.with_suffix("").as_posix()).split("/") for path in paths]
    stems = [one[-1] for one in parts]
    if len(set(stems)) == len(stems):
        return stems
    shortest = min(map(len, parts))
    differ = [place for place in range(shortest) if len({one[place] for one in parts}) > 1]
    if any(len(one) > shortest for one in parts):
        first = min([*differ, shortest - 1])
        return ["/".join(one[first:]) for one in parts]
    return ["/".join(one[place] for place in differ) or one[-1] for one in parts]


def split_pairs(
    pairs: Sequence[Pair], fraction: float, seed: int, group_regex: str | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Split into training and validation; a pair's side depends on its group's name and the seed, not on the others.

    The pages of a stack stay together. Where one stack is all there is, a block of neighbouring pages is validated on.

    Args:
        pairs: At least two groups of them.
        fraction: Share of the groups to validate on, in (0, 1).
        seed: Seed.
        group_regex: Pairs stay together whose file's name gives the same first group of this pattern (or the same
            match), such as the frames of one film; every file is a group of its own if not given.

    Raises:
        ArgumentError: The pattern is broken or does not match a name, or one group is all there is.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_group_of(pair.file_name, group_regex), []).append(pair)
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
    draw = int.from_bytes(hashlib.sha256(f"{seed}/{pairs[0].file_name}".encode()).digest()[:8], "big")
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


def _named(rows: Sequence[tuple[Path, Path]]) -> list[Pair]:
    names = distinct_names([image for image, _ in rows])
    return [Pair(image, target, file_name=name) for name, (image, target) in zip(names, rows, strict=True)]


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twins: list[tuple[Path, Path]] = []
    for name, path in zip(distinct_names(paths), paths, strict=True):
        if name in found:
            twins.append((path, found[name]))
        found.setdefault(name, path)
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


def _list_of(paths: Sequence[Path]) -> str:
    return first_of([path.name for path in paths])
