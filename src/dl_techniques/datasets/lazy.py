"""Samples that are read when they are needed, so that a data set may be larger than the memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, overload

import numpy as np

from dl_techniques.datasets.pairs import Pair


class Sized(Protocol):
    """What knows the bytes that it takes."""

    @property
    def nbytes(self) -> int: ...


Sample = TypeVar("Sample", bound=Sized)


class MemoryBudget:
    """Memory that several share.

    Args:
        free: Bytes.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Take memory if there is so much; return whether there was."""
        with self._lock:
            taken = nbytes <= self.free
            self.free -= nbytes * taken
            return taken

    def give(self, nbytes: int) -> None:
        """Give memory back."""
        with self._lock:
            self.free += nbytes


class DecodedCache:
    """Images and targets of files that were read already, while there is room, each to be handed out once.

    Args:
        room: Where they stay.
    """

    def __init__(self, room: MemoryBudget) -> None:
        self.room = room
        self._kept: dict[Pair, tuple[np.ndarray, np.ndarray]] = {}

    def keep(self, pair: Pair, image: np.ndarray, target: np.ndarray) -> None:
        """Keep what was read of a pair, if there is room."""
        if self.room.take(_bytes_of(image, target)):
            self._kept[pair] = image, target

    def hand_out(self, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
        """Return image and target and forget them; `None` if they are not here."""
        kept = self._kept.pop(pair, None)
        if kept is not None:
            self.room.give(_bytes_of(*kept))
        return kept


def _bytes_of(image: np.ndarray, target: np.ndarray) -> int:
    return image.nbytes + (0 if target is image else target.nbytes)


class LazyDataset(Sequence[Sample], Generic[Sample]):
    """The samples of pairs of files, in their order; the first that fit into a given room stay in memory once read.

    Args:
        pairs: The files.
        read: Makes the sample of a pair, the same each time.
        room: Where samples stay.
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Sample], room: MemoryBudget) -> None:
        self.pairs, self.read, self.room = tuple(pairs), read, room
        self._kept: dict[int, Sample] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the samples, without reading any."""
        return [pair.name for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if (kept := self._kept.get(number)) is not None:
            return kept
        sample = self.read(self.pairs[number])
        with self._lock:  # threads that read the same sample at once count it once
            if number not in self._kept and self.room.take(sample.nbytes):
                self._kept[number] = sample
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))
