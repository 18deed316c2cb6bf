"""Many files, one after another: where results go, what is told, what a bad file does to the others."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from dl_techniques.datasets.pairs import find_files
from dl_techniques.errors import ConvUNextError, FileError, printable
from dl_techniques.inference.network import OnTile

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # inputs that are not there
Report = TypeVar("Report")


@dataclass(frozen=True)
class FileResult(Generic[Report]):
    """Outcome of one file: no output where it was refused, no report where it was refused or skipped."""

    source: Path
    output: Path | None
    report: Report | None
    error: str
    seconds: float
    skipped: bool = False


@dataclass(frozen=True)
class Inputs:
    """The image files that were named, whether it is a single one, and what was named and does not exist."""

    files: list[Path]
    alone: bool
    not_found: list[FileResult]


def find_inputs(sources: Sequence[str]) -> Inputs:
    """Find the image files of files, folders and patterns.

    Raises:
        FileError: There is none at all.
    """
    files: list[Path] = []
    not_found: list[FileResult] = []
    for source in sources:
        try:
            files += find_files(source)
        except FileError as error:
            if len(sources) == 1:
                raise
            not_found.append(FileResult(Path(source), None, None, str(error), 0.0))
    if not files:
        reasons = " ".join(result.error for result in not_found[:SHOWN])
        raise FileError("inputs", f"none of the {len(sources)} can be read: {reasons}", "Name image files or folders.")
    return Inputs(files, len(files) == 1 and len(sources) == 1 and not Path(sources[0]).is_dir(), not_found)


def plan_outputs(
    inputs: Inputs, output: Path, overwrite: bool, name: Callable[[Path], str], resumes: bool = False
) -> list[tuple[Path, Path]]:
    """Return where the result of each image file goes, before anything is computed.

    Args:
        inputs: The files.
        output: A folder; for a single file also a file, whose suffix chooses the format.
        overwrite: Whether results may be replaced.
        name: Name of the result of a file, in a folder.
        resumes: Whether results that exist are those of an earlier run, to be left as they are.

    Raises:
        FileError: Two would become one, a result exists or would replace its source, or the folder cannot be written.
    """
    if inputs.alone and output.suffix and not output.is_dir():
        pairs, folder = [(inputs.files[0], output)], output.parent
    else:
        pairs, folder = [(path, output / name(path)) for path in inputs.files], output
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        if target in taken:
            reason = f"and {source.name} would both become {target.name}."
            raise FileError(str(taken[target]), reason, "Give them different names or folders.")
        taken[target] = source
        itself = target.exists() and target.resolve() == source.resolve()
        if itself or (target.exists() and not overwrite and not resumes):
            remedy = "Choose another --output" + ("." if overwrite or resumes else ", or add --overwrite.")
            raise FileError(str(target), "exists already.", remedy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK) and not all(target.exists() for _, target in pairs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise FileError(str(folder), f"cannot be written: {error.strerror}.", "Choose another --output.") from error
    return pairs


def process_files(
    pairs: Sequence[tuple[Path, Path]],
    work: Callable[[Path, Path, OnTile], Report],
    describe: Callable[[Report], Sequence[str]],
    console: Console,
    overwrite: bool,
    not_found: Sequence[FileResult] = (),
) -> list[FileResult[Report]]:
    """Do the same for every file; one that is refused is named and the others go on.

    `work` writes the result of a file, whole or not at all, and returns a report; `describe` returns the end of the
    file's line, then further lines. `not_found` are inputs that do not exist, the first of the results.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    results: list[FileResult[Report]] = list(not_found)
    for result in not_found:
        console.print(printable(f"refused  {result.error}"), markup=False)
    begin = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        overall = progress.add_task("images", total=len(pairs), rate="")
        for source, output in pairs:
            task = progress.add_task("tiles", total=None, rate="")

            def on_tile(done: int, total: int, task=task) -> None:
                progress.update(task, completed=done, total=total)

            result = _process(source, output, work, on_tile, overwrite)
            results.append(result)
            progress.remove_task(task)
            done = sum(not result.skipped for result in results) - len(not_found)
            rate = done / (time.perf_counter() - begin)
            progress.update(overall, advance=1, rate=f"{rate:.3g} images/s" if done else "")
            for line in _lines(result, describe):
                console.print(printable(line), markup=False)
    return results


def _process(
    source: Path, output: Path, work: Callable[[Path, Path, OnTile], Report], on_tile: OnTile, overwrite: bool
) -> FileResult[Report]:
    start = time.perf_counter()
    if output.exists() and not overwrite:
        return FileResult(source, output, None, "", 0.0, skipped=True)
    try:
        report = work(source, output, on_tile)
    except ConvUNextError as error:
        return FileResult(source, None, None, str(error), time.perf_counter() - start)
    return FileResult(source, output, report, "", time.perf_counter() - start)


def _lines(result: FileResult[Report], describe: Callable[[Report], Sequence[str]]) -> list[str]:
    if result.error:
        return [f"refused  {result.error}"]
    if result.skipped:
        return [f"{result.source} -> {result.output}  exists already, skipped"]
    said = list(describe(result.report)) if result.report is not None else []
    line = f"{result.source} -> {result.output}  {result.seconds:.1f} s" + (f"  {said[0]}" if said and said[0] else "")
    return [line, *(f"  {more}" for more in said[1:])]


def summarize(results: Sequence[FileResult]) -> str:
    """Return in words what became of all files."""
    done = [result for result in results if result.output is not None and not result.skipped]
    refused = sum(bool(result.error) for result in results)
    seconds = sum(result.seconds for result in done)
    parts = [f"{len(done)} of {len(results)} images done"]
    if done:
        parts[0] += f" in {seconds:.1f} s, {len(done) / max(seconds, 1e-9):.3g} images/s"
    if skipped := sum(result.skipped for result in results):
        parts.append(f"{skipped} existed already (--overwrite computes them again)")
    if refused:
        parts.append(f"{refused} refused")
    return "; ".join(parts)
