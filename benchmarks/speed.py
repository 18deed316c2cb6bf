"""Speed and memory side by side: ours, the same graph written otherwise, other networks, and the limit of the machine.

Run: `python benchmarks/speed.py --markdown docs/performance.md` (extras jax, torch, openvino, onnx and bench; other
networks: extra peers). `--device gpu --dtype bfloat16 --batch 32` on a GPU. Each contestant lives in a process of its
own and keeps its model; they take turns, so that drift of the machine cancels. Where memory does not hold all, they
run in heats, the reference in each. `compare` is the Python API.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from contestants import CONTESTANTS, WORKS, Job
from roofline import limits
from tables import replace_section
from worker import Worker, WorkerError

REFERENCE = "textbook-tensorflow"
WARM_UP = 2  # steps that are not counted: they compile, allocate and choose kernels
TURN, MOST_STEPS = 1.2, 20  # seconds that a turn should last, and its steps at most: the first comes after a pause
LEAST_TURNS = 3  # however slow
PROCESS_BYTES = 1.5e9  # of a contestant, its libraries and compilers, without its activations
# Activations of the textbook `tiny`: about 8 GB for four images of 256×256 in training.
PIXEL_BYTES = {"inference": 5_000, "training": 28_000}


@dataclass
class Row:
    """What was measured of a contestant.

    Attributes:
        name: Key of `CONTESTANTS`.
        seconds: Of each step.
        reference: Seconds of the reference's steps in the same turns.
        peak: Bytes, `resident` and, on a GPU, `device`.
        facts: What the contestant told of itself.
        error: Why it took no part.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Its time by that of the reference in the same turns."""
        return self.median / statistics.median(self.reference)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        turns: Of each contestant, at most.
        seconds: After which a contestant that had `LEAST_TURNS` has no further turn.
        deadline: `time.monotonic()` after which no contestant is started.
    """

    turns: int = 7
    seconds: float = 45.0
    deadline: float = float("inf")


def compare(names: Sequence[str], job: Job, work: str, effort: Effort, cache: Path) -> tuple[list[Row], dict[str, Any]]:
    """Measure contestants in turns.

    Args:
        names: Keys of `CONTESTANTS`; the first is the reference of the ratios.
        job: What they compute.
        work: `"inference"` or `"training"`.
        effort: How long to measure.
        cache: Folder for what contestants convert or compile.

    Returns:
        A row for each, in their order, and the limit of the machine as `roofline.limits` returns it, measured in the
        same turns.

    Raises:
        WorkerError: The reference or the measurement of the machine cannot run.
    """
    first, *others = (Row(name) for name in names)
    machine_times: dict[str, list[float]] = {"gemm": [], "copy": []}
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Worker("machine", job, cache))
        reference = stack.enter_context(Worker(first.name, job, cache))
        reference.run(work, WARM_UP)
        first.facts = reference.facts
        for heat in _heats(others, job, work):
            _run_heat(machine, machine_times, reference, first, heat, job, work, effort, cache)
        first.peak = reference.peak_memory()
        first.reference = first.seconds
        limit = limits(machine.facts, machine_times)
    return [first, *others], {**limit, "processor": machine.facts["processor"]}


def _heats(rows: list[Row], job: Job, work: str) -> Iterator[list[Row]]:
    """Yield the contestants in groups that fit into memory beside the reference; one empty group if there are none."""
    each = PROCESS_BYTES + (job.batch * job.size**2 * PIXEL_BYTES[work] if job.device == "cpu" else 0)
    count = max(1, int(0.85 * psutil.virtual_memory().available / each) - 1)
    yield from (rows[start : start + count] for start in range(0, len(rows), count)) if rows else [[]]


def _run_heat(
    machine: Worker,
    machine_times: dict[str, list[float]],
    reference: Worker,
    first: Row,
    heat: list[Row],
    job: Job,
    work: str,
    effort: Effort,
    cache: Path,
) -> None:
    """Start contestants, give all of them their turns beside the reference and the machine, end them."""
    with contextlib.ExitStack() as stack:
        running: list[tuple[Worker, Row]] = []
        for row in heat:
            if time.monotonic() > effort.deadline:
                row.error = "left out: the time was up"
                continue
            with _failure_noted(row):
                worker = stack.enter_context(Worker(row.name, job, cache))
                _check_same_graph(row.name, worker.facts, reference.facts)
                worker.run(work, WARM_UP - 1)  # the last of them tells how long one takes, below
                row.facts = worker.facts
                running.append((worker, row))
        steps = _steps_of_turns([reference, *(worker for worker, _ in running)], work)
        for turn in range(effort.turns):
            due = [entry for entry in running if not entry[1].error and _is_due(entry[1], turn, effort)]
            if heat and not due:
                break
            seconds = reference.run(work, steps[reference.name])
            first.seconds += seconds
            for kind, times in machine_times.items():
                times += machine.run(kind)
            for worker, row in due if turn % 2 else reversed(due):
                with _failure_noted(row):
                    row.seconds += worker.run(work, steps[row.name])
                    row.reference += seconds
        for worker, row in running:
            if not row.error:
                with _failure_noted(row):
                    row.peak = worker.peak_memory()


def _is_due(row: Row, turn: int, effort: Effort) -> bool:
    return turn < LEAST_TURNS or sum(row.seconds) < effort.seconds


def _steps_of_turns(workers: list[Worker], work: str) -> dict[str, int]:
    """Return how many steps each makes in a turn, by one step that is not counted."""
    found = {}
    for worker in workers:
        try:
            found[worker.name] = max(1, min(MOST_STEPS, int(TURN / worker.run(work)[0])))
        except WorkerError:
            found[worker.name] = 1  # its first turn tells why
    return found


@contextlib.contextmanager
def _failure_noted(row: Row) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        row.error = str(error)
        print(f"{row.name}: {row.error}", file=sys.stderr, flush=True)


def _check_same_graph(name: str, facts: dict[str, Any], reference: dict[str, Any]) -> None:
    """Refuse a contestant on the same graph whose parameters or output differ from the reference's."""
    if not CONTESTANTS[name].same_graph:
        return
    for fact in ("parameters", "output"):
        if facts.get(fact, reference[fact]) != reference[fact]:
            raise WorkerError(f"not the same graph: {fact} {facts[fact]} against {reference[fact]}")


# === Report ===


def table(rows: list[Row], limit: dict[str, Any], work: str) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        f"| {work} | step (s) | least–most | of the reference | of the limit | peak (GB) | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        title = CONTESTANTS[row.name].title
        if row.error or not row.seconds:
            lines.append(f"| {title} | | | | | | {row.error} |")
            continue
        share = f"{limit[work] / row.median:.0%}" if CONTESTANTS[row.name].same_graph else ""
        peak = row.peak.get("device", row.peak.get("resident", 0)) / 1e9
        note = row.facts.get("note", "") if CONTESTANTS[row.name].same_graph else "another network"
        if not CONTESTANTS[row.name].same_graph and "gmac" in row.facts:
            note += f", {row.facts['gmac']:.1f} GMAC an image"
        lines.append(
            f"| {title} | {row.median:.3g} | {min(row.seconds):.3g}–{max(row.seconds):.3g} | {row.ratio:.2f} | "
            f"{share} | {peak:.1f} | {note} |"
        )
    lines.append(f"| the limit of the machine | {limit[work]:.3g} | | | 100% | | |")
    return "\n".join(lines)


def describe(job: Job, limit: dict[str, Any]) -> str:
    """Return a sentence on what was computed on what."""
    cores = job.threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = f"{limit['processor']}, {cores} cores" if job.device == "cpu" else limit["processor"]
    return (
        f"`{job.variant}`, {job.batch}×{job.size}×{job.size}, {job.dtype}, on {where}: {limit['gmac_per_second']:.0f} "
        f"GMAC/s and {limit['gigabytes_per_second']:.1f} GB/s measured in the same turns. A forward pass needs "
        f"{limit['gmac']:.1f} GMAC and {limit['gigabytes']:.2f} GB."
    )


def plot(rows: list[Row], limit: dict[str, Any], work: str, path: Path) -> None:
    """Draw medians as bars with their spread, and the limit as a line; the suffix of the path is the format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row.seconds and not row.error][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(shown)), layout="constrained")
    medians = [row.median for row in shown]
    spread = [[row.median - min(row.seconds) for row in shown], [max(row.seconds) - row.median for row in shown]]
    colours = ["tab:blue" if row.name.startswith(("ours", "openvino", "onnx")) else "tab:gray" for row in shown]
    titles = [CONTESTANTS[row.name].title.replace("`", "") for row in shown]
    axes.barh(titles, medians, xerr=spread, color=colours, ecolor="black", capsize=2)
    axes.axvline(limit[work], color="tab:red", linestyle="--", label="limit of the machine")
    axes.set_xlabel(f"seconds of one step, {work}")
    axes.legend(loc="upper right")
    figure.savefig(path)
    plt.close(figure)


def save_artifact(job: Job, folder: Path) -> Job:
    """Return the job with our network as a file in a folder, for contestants that convert it."""
    job = dataclasses.replace(job, artifact=str(folder / "network.keras"))
    Worker("save", job, folder).close()
    return job


def chosen(names: Sequence[str], job: Job, work: str) -> list[str]:
    """Return those of the names that can do the work on the device, the reference first."""
    able = [name for name in names if work in CONTESTANTS[name].works and job.device in CONTESTANTS[name].devices]
    return sorted(able, key=lambda name: name != REFERENCE)


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add the options of a job to a command line."""
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--threads", type=int, help="CPU cores to use; default: all")


def job_of(options: argparse.Namespace) -> Job:
    """Return the job that a command line names."""
    names = ("variant", "batch", "size", "dtype", "device", "threads")
    return Job(**{name: getattr(options, name) for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_job(parser)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--turns", type=int, default=Effort.turns)
    parser.add_argument("--minutes", type=float, default=15.0, help="start no contestant later")
    parser.add_argument("--out", type=Path, help="folder for speed.json and a plot of each work")
    parser.add_argument("--markdown", type=Path, help="document whose tables to replace")
    options = parser.parse_args()
    start = time.monotonic()
    report: dict[str, tuple[list[Row], dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        job = save_artifact(job_of(options), Path(temporary))
        for index, work in enumerate(options.works):
            until = start + 60 * options.minutes * (index + 1) / len(options.works)
            effort = Effort(options.turns, deadline=until)
            names = chosen([REFERENCE, *(n for n in options.contestants if n != REFERENCE)], job, work)
            rows, limit = report[work] = compare(names, job, work, effort, Path(temporary))
            print(f"{table(rows, limit, work)}\n", flush=True)
    write(report, job, options.out, options.markdown)


def write(report: dict[str, Any], job: Job, out: Path | None, markdown: Path | None) -> None:
    """Write JSON, plots and tables.

    Args:
        report: Rows and limit of each work.
        job: What was computed.
        out: Folder of `speed.json` and `speed-WORK.svg`.
        markdown: Document with the section `speed`, or `speed-gpu` for a GPU.
    """
    if out:
        out.mkdir(parents=True, exist_ok=True)
        works = {w: {"rows": [dataclasses.asdict(row) for row in rows], "limit": m} for w, (rows, m) in report.items()}
        (out / "speed.json").write_text(json.dumps({"job": dataclasses.asdict(job), "works": works}, indent=1))
        for work, (rows, limit) in report.items():
            plot(rows, limit, work, out / f"speed-{work}.svg")
    if markdown:
        tables = [f"{describe(job, limit)}\n\n{table(rows, limit, work)}" for work, (rows, limit) in report.items()]
        replace_section(markdown, "speed" if job.device == "cpu" else "speed-gpu", "\n\n".join(tables))


if __name__ == "__main__":
    main()
