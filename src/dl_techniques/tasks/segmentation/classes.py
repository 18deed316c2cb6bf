"""Classes and labels: what mask values mean, and how outputs become classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.display import to_display, visible
from dl_techniques.tasks.base import as_rgb

IGNORED = 255  # in arrays of class indices
MOST_CLASSES = 254
MANY_VALUES = 24  # more values than this in unnamed masks are instances, not classes

RARE = 0.01  # share of pixels below which a value is no background
# Black, then the colours of Wong 2011, which the colour-blind tell apart, then more.
COLOURS = (
    "000000", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "999999", "9467bd", "8c564b",
    "bcbd22", "17becf", "ff9896", "98df8a",
)  # fmt: skip


@dataclass(frozen=True)
class Classes:
    """What the values of masks mean.

    Attributes:
        values: The mask value of each class, in the order of the model's classes; the first is the background of
            binary masks. Of labels, their channels.
        names: Their names.
        ignored: Values of pixels that neither train nor count.
        foreground: Whether every value that is neither the first nor ignored is the second class: binary masks, and
            instances.
        labels: Whether they are labels, each of which a pixel has or not, whatever others it has.
        painted: The colour of each class in the masks, 0xRRGGBB; empty where they have none.
        alpha: Whether masks are the alpha of their files.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: tuple[int, ...] = ()
    foreground: bool = False
    labels: bool = False
    painted: tuple[int, ...] = ()
    alpha: bool = False

    def as_card(self) -> dict[str, Any]:
        """Return what `from_card` takes, for a model's card."""
        entries = [{"name": n, "mask_value": v} for n, v in zip(self.names, self.values, strict=True)]
        for entry, colour in zip(entries, self.painted, strict=False):
            entry["colour"] = f"#{colour:06x}"
        return {
            "classes": entries,
            "ignored_mask_values": list(self.ignored),
            "every_other_value_is_foreground": self.foreground,
            "labels": self.labels,
            **({"masks_are_alpha": True} if self.alpha else {}),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any], source: str) -> Classes:
        """Return the classes that a model's card states.

        Raises:
            FileError: The card, of `source`, states none.
        """
        try:
            classes = cls(
                tuple(int(entry["mask_value"]) for entry in card["classes"]),
                tuple(str(entry["name"]) for entry in card["classes"]),
                tuple(map(int, card["ignored_mask_values"])),
                bool(card["every_other_value_is_foreground"]),
                bool(card.get("labels", False)),
                tuple(int(entry["colour"].removeprefix("#"), 16) for entry in card["classes"] if "colour" in entry),
                bool(card.get("masks_are_alpha", False)),
            )
            known = all(abs(value) < 2**32 for value in (*classes.values, *classes.ignored))
            if not (known and 1 <= classes.count <= MOST_CLASSES and all(0 <= c < 2**24 for c in classes.painted)):
                raise ValueError
            return classes
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = "has no card with classes."
            raise FileError(source, reason, "Name the model.keras of a run of `convunext train segment`.") from error

    @property
    def count(self) -> int:
        """Number of classes, background included; of labels, which have none."""
        return len(self.values)

    @property
    def outputs(self) -> int:
        """Channels of the model's output: one for two classes."""
        return 1 if self.count == 2 and not self.labels else self.count

    @property
    def activation(self) -> Literal["sigmoid", "softmax"]:
        """What turns the model's logits into probabilities."""
        return "sigmoid" if self.outputs == 1 or self.labels else "softmax"

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """Red, green and blue of each class: as in the masks where those have colours, otherwise one of `COLOURS`."""
        table = [int(colour, 16) for colour in COLOURS[int(self.labels) :]]  # black is where there is no label
        values = (
            self.painted
            if len(self.painted) == self.count
            else self.values
            if max(self.values) >= 2**16
            else [table[n % len(table)] for n in range(self.count)]
        )
        return [(value >> 16, value >> 8 & 255, value & 255) for value in values]

    def decide(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the class index of each pixel, uint8, and the probability that a model gives it, `(height, width)`.

        Of labels: 1 where each is and 0 where not, and the probability of that, `(height, width, labels)`.

        Args:
            output: Probabilities, `(height, width, outputs)`.

        Raises:
            ArgumentError: The model has another number of outputs.
        """
        if output.shape[-1] != self.outputs:
            rule = f"must have {self.outputs} outputs for the {self.count} classes of its card"
            raise ArgumentError("model", rule, output.shape[-1])
        if self.labels:
            return (output > 0.5).astype("uint8"), np.maximum(output, 1 - output)
        if self.outputs == 1:
            output = np.concatenate([1 - output, output], axis=-1)
        return output.argmax(axis=-1).astype("uint8"), output.max(axis=-1)

    def encode(self, mask: np.ndarray, path: str | os.PathLike) -> np.ndarray:
        """Return class indices, uint8, `IGNORED` where a pixel does not count; labels as they are.

        Args:
            mask: From `read_mask`, or from `read_labels`.
            path: Its file, for the message.

        Raises:
            FileError: The mask holds a value that is no class, or other labels.
        """
        if self.labels:
            if mask.shape[2] != self.count:
                raise FileError(
                    str(path), f"holds {mask.shape[2]} labels, not {self.count}.", "Add a channel for each."
                )
            return mask
        found = np.unique(mask)
        if self.foreground:
            indices = (mask != self.values[0]).astype("uint8")
        else:
            if unknown := sorted(set(found.tolist()) - set(self.values) - set(self.ignored)):
                raise FileError(
                    str(path),
                    f"holds the values {describe_values(unknown)}, but the classes are {describe_values(self.values)}.",
                    "Correct the mask, or exclude the values with --ignore.",
                )
            table = np.zeros(len(found), np.uint8)
            for position, value in enumerate(found.tolist()):
                table[position] = self.values.index(value) if value in self.values else IGNORED
            indices = table[np.searchsorted(found, mask)]
        if self.ignored:
            indices[np.isin(mask, self.ignored)] = IGNORED
        return indices


def choose_classes(
    counts: Mapping[int, int],
    kind: str = "auto",
    names: tuple[str, ...] = (),
    ignored: tuple[int, ...] = (),
    zero_is_black: bool = True,
) -> Classes:
    """Decide what the values of masks mean.

    Args:
        counts: Pixels of each value over all masks.
        kind: `"classes"` (each value is a class), `"foreground"` (all but 0, or but the most frequent value where 0
            is rare, is one class: binary masks, instances), or
            `"auto"`: foreground if there are two values or more than `MANY_VALUES`.
        names: Of the classes in the order of their values.
        ignored: Values that neither train nor count.
        zero_is_black: Whether 0 is rather the background than the most frequent value: masks with 0 as white are
            painted either way.

    Raises:
        ArgumentError: Too few or too many values, or another number of names.
    """
    values = sorted(set(counts) - set(ignored))
    if len(values) < 2:
        raise ArgumentError("masks", "must hold at least two classes", values, "Are all masks empty?")
    if kind == "auto":
        kind = "foreground" if len(values) <= 2 or (len(values) > MANY_VALUES and not names) else "classes"
    if kind == "foreground":
        if len(names) not in (0, 2):
            raise ArgumentError("classes", "must name two classes, background and foreground", names)
        frequent, total = max(values, key=lambda value: counts[value]), sum(counts[value] for value in values)
        rare = not zero_is_black or 0 not in values or (counts[0] < RARE * total and counts[frequent] > total / 2)
        background = frequent if rare else 0
        other = next(value for value in reversed(values) if value != background)
        return Classes((background, other), names or ("background", "foreground"), ignored, True)
    if len(values) > MOST_CLASSES:
        raise ArgumentError("masks", f"must hold at most {MOST_CLASSES} classes", len(values))
    if names and len(names) != len(values):
        rule = f"must name {len(values)} classes, one for each of the values {describe_values(values)}"
        raise ArgumentError("classes", rule, names, "Exclude values with --ignore.")
    return Classes(tuple(values), names or tuple(value_names(values)), ignored)


def choose_labels(count: int, names: tuple[str, ...] = (), ignored: tuple[int, ...] = ()) -> Classes:
    """Return labels that may overlap, one for each channel of the masks.

    Args:
        count: Channels of the masks.
        names: Of the labels, in the order of the channels.
        ignored: Values; a pixel neither trains nor counts where every channel holds one of them.

    Raises:
        ArgumentError: Too few or too many channels, or another number of names.
    """
    if not 2 <= count <= MOST_CLASSES:
        rule = f"must have 2 to {MOST_CLASSES} channels or pages, one for each label"
        raise ArgumentError("masks", rule, count, "For one label, use --mask-kind foreground.")
    if names and len(names) != count:
        raise ArgumentError("classes", f"must name {count} labels, one for each channel of the masks", names)
    return Classes(tuple(range(count)), names or tuple(map(str, range(count))), ignored, labels=True)


def value_names(values: Collection[int]) -> list[str]:
    """Return the values of a mask as people write them: numbers or, if one is beyond 16 bits, colours as #rrggbb."""
    form = "d" if max(values, default=0) < 2**16 else "06x"
    return [("" if form == "d" else "#") + format(value, form) for value in values]


def describe_values(values) -> str:
    """Return the first values of a list in words."""
    shown = value_names(values)
    return ", ".join(shown[:12]) + (f" … ({len(shown)} in all)" if len(shown) > 12 else "")


def overlay(pixels: np.ndarray, indices: np.ndarray, classes: Classes) -> np.ndarray:
    """Return an image with all classes but the first as colours over it, `(height, width, 3)`, uint8.

    Args:
        pixels: `(height, width, channels)`; the first three channels are shown, or the first where there are fewer.
        indices: `(height, width)`, class indices, or `(height, width, labels)`, of which all are shown.
        classes: Whose colours are taken.
    """
    low, high = np.percentile(visible(pixels), (0.5, 99.5))
    shown = as_rgb(to_display(pixels, float(low), float(high)))
    inside = (indices == 1).any(axis=2) if classes.labels else (indices > 0) & (indices != IGNORED)
    colours = (paint(indices) if classes.labels else np.array(classes.colours)[indices * inside]).astype("uint16")
    return np.where(inside[..., None], (shown + colours) // 2, shown).astype("uint8")


def paint(indices: np.ndarray) -> np.ndarray:
    """Return class indices as colours, `(height, width, 3)`, uint8; what is ignored is dark grey.

    Labels, `(height, width, labels)`, become the mean of the colours of those that are there.
    """
    colours = np.array([tuple(bytes.fromhex(colour)) for colour in COLOURS], np.uint8)
    if indices.ndim == 3:
        present = (indices == 1).astype("float32")
        mixed = present @ colours[1 + np.arange(indices.shape[2]) % (len(COLOURS) - 1)].astype("float32")
        picture = (mixed / np.maximum(present.sum(axis=2, keepdims=True), 1)).astype("uint8")
        picture[indices[..., 0] == IGNORED] = 64
        return picture
    picture = colours[indices % len(COLOURS)]
    picture[indices == IGNORED] = 64
    return picture
