"""`convunext predict --ray`: find, hand out, collect."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dl_techniques import __version__
from dl_techniques.bulk.cluster import Workers, connected, resources, share_out, silence_data
from dl_techniques.bulk.shipping import Shipment, model_files
from dl_techniques.bulk.status import DONE, FAILED, REFUSED, Status, refused_before, rows
from dl_techniques.bulk.storage import Folder, Found, find_sources, folder_of, is_address
from dl_techniques.bulk.work import Job, Journal, Worker
from dl_techniques.engines.formats import RUNTIMES
from dl_techniques.engines.selection import EngineSelection
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError, printable
from dl_techniques.images.files import print_left_out
from dl_techniques.images.formats import suffixes
from dl_techniques.inference.files import create_predictor, possible_names
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import AUTO, PredictionOptions

if TYPE_CHECKING:
    from rich.console import Console

WORKER_MEMORY = "2GB"  # of each worker, if not given
BATCH = 16  # images of a task, at most
SHOWN = 20  # refusals that are printed
EVERY = 30.0  # seconds between lines where there is no terminal
IMAGES = pa.schema({"path": pa.string(), "bytes": pa.int64(), "modified": pa.int64()})


@dataclass
class Outcome:
    """Counts of images: named, with a result already, refused by an earlier run, and by state of this run."""

    total: int = 0
    there: int = 0
    before: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    status: str = ""

    @property
    def refused(self) -> int:
        """Images without a result, and inputs that are not there."""
        return self.before + self.states[REFUSED] + self.states[FAILED] + len(self.lost)

    def __str__(self) -> str:
        done = self.states[DONE]
        parts = [f"{done} of {self.total} images done"]
        if done:
            parts[0] += f" in {self.seconds:.1f} s, {done / max(self.seconds, 1e-9):.3g} images/s"
        if self.there:
            parts.append(f"{self.there} existed already (--overwrite computes them again)")
        if self.states[REFUSED]:
            parts.append(f"{self.states[REFUSED]} refused")
        if self.before:
            parts.append(f"{self.before} refused earlier and unchanged since")
        if self.states[FAILED]:
            parts.append(f"{self.states[FAILED]} failed (the next run tries them again)")
        if self.lost:
            parts.append(f"{len(self.lost)} inputs not found")
        return "; ".join(parts)


def predict_bulk(
    selection: EngineSelection,
    inputs: Sequence[str],
    options: PredictionOptions,
    console: Console,
    address: str | None = None,
) -> Outcome:
    """Apply a model to any number of images with the workers of a Ray cluster.

    Results are those of `predict_files`, to the byte where processors and versions are alike. What is there is left,
    what was refused is not tried again unless image, model or settings changed; a Parquet table says what became of
    each.

    Args:
        selection: The model, and what runs it.
        inputs: Files, folders and patterns, of this machine or addresses such as `s3://bucket/folder/`.
        options: Settings; `output` is a folder.
        console: Where to tell what happens.
        address: Of the cluster, as `connected` takes it.

    Raises:
        FileError: The model is broken or no input exists, two images would become one, or nothing can be written.
        ArgumentError: A setting does not fit the model.
        ConvUNextError: There is no such cluster, or its workers cannot work.
    """
    output = _output_folder(options.output)
    if options.max_memory == AUTO:  # what is free is shared by workers, whose number depends on this
        options = replace(options, max_memory=WORKER_MEMORY)
    with _without_gpus():
        predictor = create_predictor(selection, options)
    outcome = Outcome()
    found, outcome.lost = find_sources(inputs)
    outcome.total = len(found)
    print_left_out(console, *inputs)
    _check_names(predictor, found, output)
    output.make()
    status = Status(output)
    outcome.status = str(status)
    settings = _digest(selection, options)
    missing = _missing(predictor, found, output, status, settings, options.overwrite, outcome)
    memory = predictor.memory
    del predictor, found
    for line in outcome.lost[:SHOWN]:
        console.print(printable(f"refused  {line}"))
    try:
        if missing:
            with connected(address):
                remote = output.remote or any(is_address(source) for source in inputs)
                workers = share_out(resources(), memory, RUNTIMES[selection.runtime].uses_gpu, remote)
                console.print(f"{len(missing)} images for {workers}")
                job = _job(selection, options, output, settings, workers)
                start = time.perf_counter()
                for table in _told(_run(missing, job, workers), len(missing), outcome, console):
                    status.add(table)
                outcome.seconds = time.perf_counter() - start
    finally:
        status.finish()
    console.print(str(outcome))
    console.print(printable(f"state of each image: {status}"))
    return outcome


def _output_folder(output: os.PathLike) -> Folder:
    if Path(output).suffix.lower() in suffixes():
        raise ArgumentError("output", "must be a folder with --ray", str(output))
    return Folder(output)


@contextlib.contextmanager
def _without_gpus() -> Iterator[None]:
    """Leave the memory of accelerators to the workers: this process only looks at the model."""
    name = "CUDA_VISIBLE_DEVICES"
    kept = os.environ.get(name)
    os.environ[name] = "-1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if kept is not None:
            os.environ[name] = kept


def _check_names(predictor: Predictor, found: Sequence[Found], output: Folder) -> None:
    """Refuse images whose results would be one file, and a folder of results that is one of images."""
    taken: dict[str, str] = {}
    for image in found:
        target = possible_names(predictor, Path(image.name))[0]
        if target in taken:
            reason = f"and {image.source} would both become {target}."
            raise FileError(taken[target], reason, "Give them different names or folders.")
        taken[target] = image.source
    parents = {image.source[: -len(image.name)] for image in found if not is_address(image.source)}
    parents |= {str(folder_of(image.source)[0]) + "/" for image in found if is_address(image.source)}
    if f"{output}/" in parents:
        raise FileError(str(output), "holds the images.", "Choose another --output.")


def _missing(
    predictor: Predictor,
    found: list[Found],
    output: Folder,
    status: Status,
    settings: str,
    overwrite: bool,
    outcome: Outcome,
) -> list[Found]:
    """Return what is to be done; rows of what was done without one are added."""
    if overwrite:
        return found
    there = {info.base_name for info in output.list()}
    earlier = status.read()
    known = set(earlier["path"].to_pylist())
    refused = {path: rest for path, *rest in refused_before(earlier, settings)}
    missing, new = [], []
    for image in found:
        results = [name for name in possible_names(predictor, Path(image.name)) if name in there]
        if results:
            outcome.there += 1
            if image.source not in known:
                new.append({**_as_row(image), "state": DONE, "output": output / results[0], "seconds": 0.0})
        elif refused.get(image.source) == [image.bytes, image.modified]:
            outcome.before += 1
        else:
            missing.append(image)
    if new:
        status.add(rows(new))
    return missing


def _as_row(image: Found) -> dict[str, Any]:
    return {"path": image.source, "bytes": image.bytes, "modified": image.modified}


def _digest(selection: EngineSelection, options: PredictionOptions) -> str:
    """Return what a refusal depends on, beside the image."""
    kept = {key: value for key, value in asdict(options).items() if key not in ("output", "overwrite")}
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in model_files(selection.path)]
    told = json.dumps([__version__, selection.runtime, selection.precision, kept, files], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _job(
    selection: EngineSelection, options: PredictionOptions, output: Folder, settings: str, workers: Workers
) -> Job:
    import ray

    backend = ""
    if selection.starts_keras:
        import keras

        backend = keras.backend.backend()
    shipment = ray.put(Shipment.of(selection)) if workers.nodes > 1 else None
    return Job(selection, options, str(output), settings, backend, workers.cpus, workers.threads, shipment)


def _run(missing: list[Found], job: Job, workers: Workers) -> Iterator[pa.Table]:
    """Yield the rows of the images as they are done."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    data = silence_data()
    size = max(1, min(BATCH, len(missing) // (16 * workers.count)))  # so that all end at about the same time
    parts = (missing[start : start + size] for start in range(0, len(missing), size))
    tables = [pa.Table.from_pylist([_as_row(image) for image in part], schema=IMAGES) for part in parts]
    missing.clear()
    # Where this process is: it lives as long as the run.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), True)
    journal = ray.remote(Journal).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    ).remote()  # fmt: skip
    done = data.from_arrow(tables).map_batches(
        Worker,
        fn_constructor_args=(job, journal),
        batch_size=None,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=min(workers.count, len(tables)), max_tasks_in_flight_per_actor=2),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    try:
        yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except RayError as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        remedy = "Install the same versions of convunext and of the engine on all machines."
        raise ConvUNextError("--ray", f"the workers cannot start: {lines[-1].strip()}.", remedy) from error


def _told(tables: Iterable[pa.Table], total: int, outcome: Outcome, console: Console) -> Iterator[pa.Table]:
    """Pass rows on and tell how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    done, shown, last = 0, 0, time.monotonic()
    begin = 0.0  # when the first images came: workers have started
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("images", total=total, rate="")
        for table in tables:
            now = time.monotonic()
            outcome.states.update(table["state"].to_pylist())
            for error in filter(None, table["error"].to_pylist()):
                shown += 1
                if shown <= SHOWN:
                    console.print(f"refused  {printable(error)}")
                elif shown == SHOWN + 1:
                    console.print("refused  more, listed in the table below")
            first, begin = (done == 0), begin or now
            done += len(table)
            rate = 0.0 if first else done / (now - begin)
            progress.update(task, completed=done, rate=f"{rate:.3g} images/s" if rate else "")
            if not console.is_terminal and now - last > EVERY:
                left = f", {(total - done) / rate / 60:.0f} min left" if rate else ""
                console.print(f"{done} of {total} images, {rate:.3g} images/s{left}")
                last = now
            yield table
