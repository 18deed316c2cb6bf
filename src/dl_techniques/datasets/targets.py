"""What belongs to an image in a data set, as its task reads it, and what is found in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.datasets.pairs import Pair
from dl_techniques.images.source import Channels, ImageSource, Picture


@dataclass(frozen=True)
class PairFacts:
    """What was found in an image and its target.

    The largest magnitude is that of floating-point samples of both, 0 where both are integers; `found` is what the
    reader of the targets says, see `TargetReader.describe`; `problem` is why the pair cannot be used, empty if it can;
    `flat` is whether the image has one value in each channel.
    """

    pair: Pair
    size: tuple[int, int] = (0, 0)
    channels: int = 0
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    found: Any = None
    target_channels: int = 1
    largest_float: float = 0.0
    digest: str = ""
    target_digest: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""
    flat: bool = False


class TargetReader:
    """Reads targets from open files: those that are images, unless a task overrides it.

    Attributes:
        pages_are_channels: Whether the pages of a target are its channels where its image has a single page.
        alpha: Whether targets are the alpha of their files.
        pages: What to do about a target that has not as many pages as its image.
    """

    pages_are_channels = False
    alpha = False
    pages = "A stack needs a target of as many pages."

    def read(
        self, source: ImageSource, page: int | None, channels: Channels, image: Picture | None
    ) -> tuple[np.ndarray, Picture]:
        """Return a target, `(height, width, channels)`, and what the file held.

        Args:
            source: Its file.
            page: Page of a stack; `None` where the image is no stack.
            channels: Which samples of the image's pixels are channels; see `ImageSource.read`.
            image: The image, where the file is the same.

        Raises:
            FileError: The file is broken, or holds no target of this task.
        """
        picture = image or source.read(page, channels)
        return picture.pixels, picture

    def settle(self, facts: Sequence[PairFacts]) -> TargetReader:
        """Return how targets are to be read, given what was found in all of them; itself if they were read so.

        Raises:
            FileError: They do not fit together; two are named.
        """
        return self

    def describe(self, target: np.ndarray, picture: Picture) -> Any:
        """Return what `notes`, and the task, want to know of a target that was read."""
        return None

    def notes(self, facts: Sequence[PairFacts]) -> list[str]:
        """Return what a user should know of all targets, in words."""
        return []


class ImageReader(TargetReader):
    """Reads images to restore, or the images themselves where nothing else belongs to them."""
