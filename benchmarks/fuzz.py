"""Damage inputs at random, and count what becomes of them: done, refused by name, or a defect.

    python benchmarks/fuzz.py files --count 20000 --markdown docs/robustness.md
    python benchmarks/fuzz.py files --case tiff-lzw:1234      # one try in this process, with its traceback

Each subject (`files`, …) is a module `fuzz_SUBJECT.py` beside this one with

- `KINDS`, the names of what is damaged, and
- `attempt(kind, seed, folder)`, which damages a `kind` as `seed` says, in an empty `folder`, uses it as the product
  does, and returns a word for what came of it, such as "done". It lets a `ConvUNextError` through, which is a refusal,
  and raises `Wrong` for a result that is not true. The same kind and seed always give the same damage.

Attempts run in processes of their own, each of which ends when it crashes or takes too long; the next goes on.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_techniques.errors import ConvUNextError
from tables import replace_section

SUBJECTS = sorted(path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py"))
DEFECTS = ("foreign error", "crash", "too slow", "too much memory", "wrong")
NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


class Wrong(Exception):
    """An input was taken, and what came of it is not true."""


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt: "refused", one of `DEFECTS`, or what the subject calls it; seconds; bytes it took."""

    kind: str
    seed: int
    state: str
    detail: str = ""
    seconds: float = 0.0
    memory: int = 0


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return bytes that were damaged at one to four places: flipped, overwritten, cut out, repeated, or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = _place(len(data), rng)
        DAMAGES[rng.randrange(len(DAMAGES))](data, place, rng)
    return bytes(data)


def _place(size: int, rng: random.Random) -> int:
    """Return a place, half of the time near one of the ends, where formats keep what they declare."""
    near = rng.choice((0, 0, size - 512, None, None, None))
    return rng.randrange(size or 1) if near is None else max(0, min(near + rng.randrange(512), size - 1))


def _flip(data: bytearray, place: int, rng: random.Random) -> None:
    data[place : place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[place : place + 1])


def _overwrite(data: bytearray, place: int, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(8 * size)
    data[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _cut_out(data: bytearray, place: int, rng: random.Random) -> None:
    del data[place : place + rng.choice((1, 4, 12, 100))]


def _repeat(data: bytearray, place: int, rng: random.Random) -> None:
    part = data[place : place + rng.choice((1, 4, 12, 100))]
    data[place:place] = part * rng.choice((1, 1, 10))


def _cut_off(data: bytearray, place: int, rng: random.Random) -> None:
    del data[place:]


DAMAGES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _flip, _flip, _flip, _overwrite, _overwrite, _overwrite, _cut_out, _repeat, _cut_off,
)  # fmt: skip


def attempt(subject: str, kind: str, seed: int, limit: int | None = None) -> Outcome:
    """Make one attempt in this process; more than `limit` bytes of memory are a defect."""
    module = importlib.import_module(f"fuzz_{subject}")
    before, start, detail = _resident(), time.perf_counter(), ""
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            state = module.attempt(kind, seed, Path(folder))
    except ConvUNextError as error:
        state, detail = "refused", str(error)
    except Wrong as error:
        state, detail = "wrong", str(error)
    except Exception as error:
        (*_, last) = traceback.extract_tb(error.__traceback__)
        state, detail = "foreign error", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    memory = _peak() - before
    if limit is not None and memory > limit and state not in DEFECTS:
        state, detail = "too much memory", f"{memory / 1e6:.0f} MB"
    return Outcome(kind, seed, state, detail, time.perf_counter() - start, memory)


def _resident() -> int:
    """Return the memory of this process, from where its peak counts (Linux; 0 elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS")


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return 0


def _status(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def _serve(connection: Any, subject: str, limit: int, space: int) -> None:
    """Make the attempts that come through a pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    importlib.import_module(f"fuzz_{subject}")
    if space:
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # what libraries print of damage
    connection.send(None)
    while (case := connection.recv()) is not None:
        kind, seed = case
        connection.send(attempt(subject, kind, seed, limit))


class Worker:
    """A process that makes attempts, started anew after each that it does not survive."""

    def __init__(self, subject: str, seconds: float, limit: int, space: int) -> None:
        self.seconds, self._arguments = seconds, (subject, limit, space)
        self._process: Any = None

    def __call__(self, kind: str, seed: int) -> Outcome:
        if self._process is None:
            self._start()
        self._connection.send((kind, seed))
        start = time.perf_counter()
        try:
            if self._connection.poll(self.seconds):
                return self._connection.recv()
            state = "too slow"
        except (EOFError, ConnectionError):
            state = "crash"
        detail = f"over {self.seconds:.0f} s" if state == "too slow" else f"exit status {self.end()}"
        self.end()
        return Outcome(kind, seed, state, detail, time.perf_counter() - start)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # all is imported

    def end(self) -> int | None:
        """End the process and return its exit status."""
        if self._process is None:
            return None
        self._process.join(1)
        self._process.kill()
        self._process.join()
        status, self._process = self._process.exitcode, None
        return status


@contextmanager
def _printing(every: float) -> Iterator[Callable[[Outcome], None]]:
    """Print each new defect, and now and then how many attempts were made."""
    seen: set[tuple[str, str, str]] = set()
    count, last = itertools.count(1), time.perf_counter()

    def show(outcome: Outcome) -> None:
        nonlocal last
        number = next(count)
        known = outcome.kind, outcome.state, outcome.detail.split("(")[-1]
        if outcome.state in DEFECTS and known not in seen:
            seen.add(known)
            print(f"{outcome.state}: {outcome.kind}:{outcome.seed}: {outcome.detail}", flush=True)
        if time.perf_counter() - last > every:
            last = time.perf_counter()
            print(f"{number} attempts", flush=True)

    yield show


def run(subject: str, cases: Iterable[tuple[str, int]], jobs: int, **limits: Any) -> list[Outcome]:
    """Make attempts in so many processes at a time."""
    waiting, outcomes, lock = iter(cases), [], threading.Lock()

    def work() -> None:
        worker = Worker(subject, **limits)
        while True:
            with lock:
                case = next(waiting, None)
            if case is None:
                worker.end()
                return
            outcome = worker(*case)
            with lock:
                outcomes.append(outcome)
                show(outcome)

    with _printing(60) as show:
        threads = [threading.Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return a row for each kind and one for all: attempts, what became of them, slowest, most memory."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.kind].append(outcome)
    every = [outcome for row in rows.values() for outcome in row]
    usual = [state for state in dict.fromkeys(o.state for o in every) if state not in (*DEFECTS, "refused")]
    states = [*sorted(usual), "refused", *DEFECTS]
    lines = [f"| kind | tries | {' | '.join(states)} | slowest, s | most memory, MB |"]
    lines.append("| --- |" + " ---: |" * (len(states) + 3))
    for kind, row in (*rows.items(), ("all", every)):
        counts = Counter(outcome.state for outcome in row)
        figures = [len(row), *(counts[state] for state in states)]
        slowest, most = max(o.seconds for o in row), max(o.memory for o in row) / 1e6
        lines.append(f"| {kind} | {' | '.join(map(str, figures))} | {slowest:.2f} | {most:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--count", type=int, default=1000, help="attempts of each kind (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them (default: 0)")
    parser.add_argument("--kinds", nargs="+", help="kinds that are damaged (default: all)")
    parser.add_argument("--case", help="one attempt, KIND:SEED, in this process")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--seconds", type=float, default=8.0, help="that an attempt may take (default: 8)")
    parser.add_argument("--memory", type=float, default=500.0, help="MB that an attempt may take (default: 500)")
    parser.add_argument("--space", type=float, default=0.0, help="MB of address space of a process (default: no limit)")
    parser.add_argument("--defects", type=Path, help="JSON file to write the defects into")
    parser.add_argument("--markdown", type=Path, help="document to write the table into")
    options = parser.parse_args()
    module = importlib.import_module(f"fuzz_{options.subject}")
    if options.case:
        kind, seed = options.case.rsplit(":", 1)
        with tempfile.TemporaryDirectory() as folder:
            print(module.attempt(kind, int(seed), Path(folder)))
        return
    seeds = range(options.first, options.first + options.count)
    cases = ((kind, seed) for seed in seeds for kind in options.kinds or module.KINDS)
    limits = {"seconds": options.seconds, "limit": int(1e6 * options.memory), "space": int(1e6 * options.space)}
    outcomes = run(options.subject, cases, options.jobs, **limits)
    lines = table(sorted(outcomes, key=lambda outcome: outcome.kind))
    print("\n".join(lines))
    defects = [vars(outcome) for outcome in outcomes if outcome.state in DEFECTS]
    if options.defects:
        options.defects.write_text(json.dumps(defects, indent=1))
    if options.markdown:
        replace_section(options.markdown, f"fuzz {options.subject}", "\n".join(lines))
    sys.exit(bool(defects))


if __name__ == "__main__":
    importlib.import_module("fuzz").main()  # by the name that the subjects import, so that there is one `Wrong`
