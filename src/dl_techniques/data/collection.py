"""Samples that are read when they are needed, so that a data set may be larger than the memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar, overload

from dl_techniques.data.pairs import Pair


class Sized(Protocol):
    """What knows the bytes that it takes."""

    @property
    def nbytes(self) -> int: ...


Sample = TypeVar("Sample", bound=Sized)


class Samples(Sequence[Sample], Generic[Sample]):
    """The samples of pairs of files, in their order; the first that fit into a given room stay in memory once read.

    Args:
        pairs: The files.
        read: Makes the sample of a pair, the same each time.
        room: Bytes of samples to keep.
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Sample], room: int) -> None:
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
            if number not in self._kept and sample.nbytes <= self.room:
                self._kept[number] = sample
                self.room -= sample.nbytes
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))
