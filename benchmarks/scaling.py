"""How time and peak memory grow: against image size, batch, variant and cores.

Run: `python benchmarks/scaling.py --markdown docs/performance.md` (extras openvino and bench). Every point is a process
of its own; points of a curve take turns, as many as memory holds. Inference keeps to `--memory`, by default what
`convunext predict` may take: images that would need more are computed in exact tiles. Where `--out`
holds an earlier run, `--curves` measured again replace those of that run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from contestants import CONTESTANTS, Job
from speed import PIXEL_BYTES, PROCESS_BYTES, add_job, job_of, save_artifact
from tables import replace_section
from worker import Worker, WorkerError

CURVES = ("size", "batch", "variant", "cores", "training")
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8)
VERSIONS = ("v2", "v1")
VARIANTS = ("tiny", "small", "base")
CORES = (1, 2)
SECONDS = 120.0  # after which a point has no further turn
INFERENCE_MEMORY = 2 * 10**9  # bytes; the default of `convunext predict`


@dataclass
class Point:
    """What was measured of one job.

    Attributes:
        contestant: Key of `CONTESTANTS`.
        work: `"inference"` or `"training"`.
        job: What was computed.
        seconds: Of each step.
        resident: Most bytes of main memory, the whole process.
        error: Why there is nothing.
    """

    contestant: str
    work: str
    job: Job
    seconds: list[float]
    resident: int = 0
    error: str = ""

    @property
    def megapixel_seconds(self) -> float:
        """Median seconds by the megapixels of a step."""
        return statistics.median(self.seconds) * 1e6 / (self.job.batch * self.job.size**2)


def measure(points: Sequence[Point], turns: int, cache: Path) -> None:
    """Measure points in turns, as many at once as memory holds; each is given its figures.

    Args:
        points: What to measure; a point that fails is given the reason.
        turns: Steps of each point, after one that is not counted; fewer once they took `SECONDS`.
        cache: Folder for what contestants convert or compile.
    """
    waiting = list(points)
    while waiting:
        group, free = [], 0.85 * psutil.virtual_memory().available
        while waiting and (not group or _bytes(waiting[0]) < free):
            free -= _bytes(waiting[0])
            group.append(waiting.pop(0))
        _measure_group(group, turns, cache)


def _bytes(point: Point) -> float:
    """Return roughly what a point takes."""
    activations = point.job.batch * point.job.size**2 * PIXEL_BYTES[point.work]
    return PROCESS_BYTES + (activations if point.job.memory is None else min(activations, point.job.memory))


def _measure_group(group: list[Point], turns: int, cache: Path) -> None:
    running: list[tuple[Worker, Point]] = []
    try:
        for point in group:
            try:
                worker = Worker(point.contestant, point.job, cache)
                running.append((worker, point))
                worker.run(point.work)  # compiles
            except WorkerError as error:
                point.error = str(error)
        for turn in range(turns):
            for worker, point in running if turn % 2 else reversed(running):
                if not point.error and sum(point.seconds) < SECONDS:
                    try:
                        point.seconds += worker.run(point.work)
                        point.resident = worker.peak_memory()["resident"]
                    except WorkerError as error:
                        point.error = str(error)
    finally:
        for worker, _ in running:
            worker.close()


def curves(job: Job, contestant: str, trainer: str, memory: float) -> dict[str, list[Point]]:
    """Return the points of each table, not measured yet.

    Args:
        job: What is varied; `memory` bounds inference.
        contestant: Infers.
        trainer: Trains.
        memory: Bytes that a training may take; points that would take more are left out.
    """

    def point(name: str, work: str, **changes) -> Point:
        kept = job.memory if work == "inference" else None
        return Point(name, work, dataclasses.replace(job, memory=kept, **changes), [])

    trainings = [
        *(point(trainer, "training", size=size, batch=1) for size in SIZES),
        *(point(trainer, "training", batch=batch) for batch in BATCHES),
    ]
    return {
        "size": [
            point(contestant, "inference", version=version, size=size, batch=1)
            for version in VERSIONS
            for size in SIZES
        ],
        "batch": [point(contestant, "inference", batch=batch) for batch in BATCHES],
        "variant": [point(contestant, "inference", variant=variant, batch=1) for variant in VARIANTS],
        "cores": [
            point(name, work, threads=cores)
            for name, work in ((contestant, "inference"), (trainer, "training"))
            for cores in CORES
        ],
        "training": [point for point in trainings if _bytes(point) < memory],
    }


def table(points: list[Point]) -> str:
    """Return points as a Markdown table."""
    lines = [
        "| work | on | variant | cores | batch | size | step (s) | least–most | s/megapixel | peak (GB) |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for point in points:
        job, title = point.job, CONTESTANTS[point.contestant].title
        head = f"| {point.work} | {title} | {job.variant} {job.version} | {job.threads or 'all'} | {job.batch} |"
        head += f" {job.size} |"
        if point.error or not point.seconds:
            lines.append(f"{head} {point.error} | | | |")
            continue
        lines.append(
            f"{head} {statistics.median(point.seconds):.3g} | {min(point.seconds):.3g}–{max(point.seconds):.3g} | "
            f"{point.megapixel_seconds:.2f} | {point.resident / 1e9:.1f} |"
        )
    return "\n".join(lines)


def plot(points: list[Point], path: Path) -> None:
    """Draw seconds for a megapixel and peak memory against the side of the image."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [point for point in points if point.seconds and not point.error]
    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for version in dict.fromkeys(point.job.version for point in shown):
        line = [point for point in shown if point.job.version == version]
        sides = [point.job.size for point in line]
        time_axes.plot(sides, [point.megapixel_seconds for point in line], marker="o", label=version)
        memory_axes.plot(sides, [point.resident / 1e9 for point in line], marker="o", label=version)
    time_axes.set(xlabel="height and width (pixels)", ylabel="seconds for a megapixel")
    memory_axes.set(xlabel="height and width (pixels)", ylabel="peak memory (GB)")
    time_axes.legend()
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_job(parser)
    infer = [name for name, contestant in CONTESTANTS.items() if "inference" in contestant.works]
    train = [name for name, contestant in CONTESTANTS.items() if "training" in contestant.works]
    parser.add_argument("--contestant", default="openvino", choices=infer, help="what infers")
    parser.add_argument("--trainer", default="ours-tensorflow", choices=train, help="what trains")
    parser.add_argument("--memory", type=int, default=INFERENCE_MEMORY, help="bytes that inference may take")
    parser.add_argument("--curves", nargs="+", choices=CURVES, help="default: all")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave larger images out, in pixels")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.svg")
    parser.add_argument("--markdown", type=Path, help="document whose section `scaling` to replace")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary)
        job = dataclasses.replace(job_of(options), memory=options.memory)
        found = curves(job, options.contestant, options.trainer, 0.8 * psutil.virtual_memory().available)
        found = {name: points for name, points in found.items() if name in (options.curves or found)}
        artifacts: dict[str, str] = {}
        for points in found.values():
            points[:] = [point for point in points if point.job.size <= options.largest]
            for point in points:
                point.job = _with_artifact(point, artifacts, cache)
            measure(points, options.turns, cache)
            print(f"{table(points)}\n", flush=True)
    write(found, options.out, options.markdown)


def _with_artifact(point: Point, artifacts: dict[str, str], cache: Path) -> Job:
    """Return the job of a point with the file of its variant's network, written once, if it needs one."""
    if point.contestant not in ("openvino", "onnxruntime"):
        return point.job
    network = f"{point.job.variant}-{point.job.version}"
    if network not in artifacts:
        folder = cache / network
        folder.mkdir()
        artifacts[network] = save_artifact(point.job, folder).artifact
    return dataclasses.replace(point.job, artifact=artifacts[network])


def _as_written(point: Point) -> dict[str, Any]:
    """Return a point for JSON, without the file that its network was in for the time being."""
    return dataclasses.asdict(dataclasses.replace(point, job=dataclasses.replace(point.job, artifact="")))


def _earlier(path: Path) -> dict[str, list[Point]]:
    """Return the points of each curve that an earlier run wrote."""
    if not path.exists():
        return {}
    written = json.loads(path.read_text())
    return {
        name: [Point(**(point | {"job": Job(**point["job"])})) for point in points] for name, points in written.items()
    }


def write(found: dict[str, list[Point]], out: Path | None, markdown: Path | None) -> None:
    """Write JSON, a plot of the curve `size`, and tables; curves that were not measured stay as the JSON has them."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        found = _earlier(out / "scaling.json") | found
        found = {name: found[name] for name in CURVES if name in found}
        points = {name: [_as_written(point) for point in points] for name, points in found.items()}
        (out / "scaling.json").write_text(json.dumps(points, indent=1))
        if "size" in found:
            plot(found["size"], out / "scaling.svg")
    if markdown:
        replace_section(markdown, "scaling", "\n\n".join(table(points) for points in found.values()))


if __name__ == "__main__":
    main()
