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
    """Memory that several caches share.

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
    """Images and targets that were read already, as far as a memory budget allows, each until it is taken out.

    Args:
        budget: Memory for them.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self._decoded: dict[Pair, tuple[np.ndarray, np.ndarray]] = {}

    def put(self, pair: Pair, image: np.ndarray, target: np.ndarray) -> None:
        """Store what was read of a pair, if it fits the budget."""
        if self.budget.take(_bytes_of(image, target)):
            self._decoded[pair] = image, target

    def pop(self, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
        """Remove and return image and target of a pair; `None` if they are not here."""
        decoded = self._decoded.pop(pair, None)
        if decoded is not None:
            self.budget.give(_bytes_of(*decoded))
        return decoded

    def clear(self) -> None:
        """Remove all that was read."""
        for pair in list(self._decoded):
            self.pop(pair)


def _bytes_of(image: np.ndarray, target: np.ndarray) -> int:
    return image.nbytes + (0 if target is image else target.nbytes)


class LazyDataset(Sequence[Sample], Generic[Sample]):
    """The samples of pairs of files, in their order; those that fit a memory budget stay in memory once read.

    Args:
        pairs: The files.
        read: Makes the sample of a pair, the same each time.
        budget: Memory for samples.
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Sample], budget: MemoryBudget) -> None:
        self.pairs, self.read, self.budget = tuple(pairs), read, budget
        self._samples: dict[int, Sample] = {}
        self._locks = [threading.Lock() for _ in self.pairs]

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
        with self._locks[number]:  # a thread waits for a sample that another reads
            sample = self._samples.get(number)
            if sample is None:
                sample = self.read(self.pairs[number])
                if self.budget.take(sample.nbytes):
                    self._samples[number] = sample
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))
