"""A worker: applies the functions of the local command to images, so that results are the same to the byte."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dl_techniques.bulk.credentials import CREDENTIALS, Credentials
from dl_techniques.bulk.shipping import Shipment
from dl_techniques.bulk.status import DONE, FAILED, REFUSED, rows
from dl_techniques.bulk.storage import Folder, StorageError, folder_of, is_address
from dl_techniques.engines.selection import EngineSelection
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.images.files import image_shape, open_image
from dl_techniques.inference.files import (
    PredictionReport,
    describe,
    possible_names,
    predict_file,
    predictor_settings,
    reads_in_parts,
    result_name,
)
from dl_techniques.inference.network import OnTile, ignore
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import PredictionOptions
from dl_techniques.tasks.base import Prediction

if TYPE_CHECKING:
    import numpy as np

IN, OUT = "in", "out"  # folders of images that were fetched and of results to be stored
DEATHS = 2  # crashes of processes that computed an image, after which it is refused


@dataclass(frozen=True)
class Job:
    """What all workers of a run need to know.

    `settings` is a digest of all that a result depends on, `backend` that of Keras where it matters; a worker has
    `cores` threads that compute and `threads` images in hand; `shipment` is the model's files where workers may not
    have them; `credentials` are what addresses hide.
    """

    selection: EngineSelection
    options: PredictionOptions
    output: str
    settings: str
    backend: str
    cores: int
    threads: int
    shipment: Any = None
    credentials: Credentials = field(default_factory=Credentials)


class Journal:
    """Counts what was begun and not ended: what a process computed when it crashed."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        """Return how often this was begun before and not ended."""
        self._begun[key] += 1
        return self._begun[key] - 1

    def end(self, *keys: str) -> None:
        """Forget what is done."""
        for key in keys:
            del self._begun[key]


class SharedPredictor(Predictor):
    """A predictor of several threads: one computes, while others read and write within what the memory leaves."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._computing, self._memory_left = threading.RLock(), threading.Condition()
        self._taken = 0
        super().__init__(*arguments, **settings)

    def __call__(self, pixels: np.ndarray, on_tile: OnTile = ignore, valid: np.ndarray | None = None) -> Prediction:
        with self._computing:
            return super().__call__(pixels, on_tile, valid)

    @contextlib.contextmanager
    def reserve_memory(self, source: Path) -> Iterator[None]:
        """Wait until the arrays of an image fit beside those of the other threads; one alone always does."""
        try:
            needed = min(self._arrays(image_shape(source)), self.memory)
        except (ConvUNextError, OSError):
            needed = 0  # it will be refused
        with self._memory_left:
            self._memory_left.wait_for(lambda: self._taken + needed <= self.memory)
            self._taken += needed
        try:
            # What is read in parts asks the network itself.
            with self._computing if self._reads_in_parts(source) else contextlib.nullcontext():
                yield
        finally:
            with self._memory_left:
                self._taken -= needed
                self._memory_left.notify_all()

    def _reads_in_parts(self, source: Path) -> bool:
        try:
            with open_image(source) as file:
                file.channels_apart = self.channels == 1
                return reads_in_parts(self, file)
        except FileError:
            return False  # raised again when it is read


class Worker:
    """A process with a model.

    Args:
        job: What to do.
        journal: Handle of the `Journal`.
    """

    def __init__(self, job: Job, journal: Any) -> None:
        threads = {"OMP_NUM_THREADS": job.cores, "TF_NUM_INTRAOP_THREADS": job.cores, "NPROC": job.cores}
        os.environ.update({name: str(count) for name, count in threads.items()})
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if job.backend:
            os.environ["KERAS_BACKEND"] = job.backend
        import ray

        shipment: Shipment | None = None if job.shipment is None else ray.get(job.shipment)
        selection = job.selection if shipment is None else shipment.unpack(job.selection)
        self._job, self._journal, self._get = job, journal, ray.get
        self._predictor = SharedPredictor(selection, **predictor_settings(job.options))
        CREDENTIALS.given.update(job.credentials.given)
        self._output = Folder(job.output)
        self._pool = ThreadPoolExecutor(job.threads)
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict the images of a batch, `path`, `bytes` and `modified`, and return their rows."""
        images = batch.to_pylist()
        key = images[0]["path"]
        if self._get(self._journal.begin.remote(f"batch {key}")):
            results = [self._retry(image) for image in images]  # a process crashed, perhaps because of one of them
        else:
            results = list(self._pool.map(self._predict, images))
        self._journal.end.remote(f"batch {key}")
        return rows(results)

    def _retry(self, image: dict[str, Any]) -> dict[str, Any]:
        """Predict an image of a batch that was begun before, unless it has a result or has crashed too often."""
        path = image["path"]
        _, name = folder_of(path)
        if not self._job.options.overwrite:
            for result in possible_names(self._predictor, Path(name)):
                if self._output.look(result).is_file:
                    return self._row(image, DONE, output=self._output / result)
        deaths: Any = self._get(self._journal.begin.remote(path))
        if deaths >= DEATHS:
            error = FileError(path, f"{deaths} processes crashed while computing it.", "Inspect it, or leave it out.")
            return self._row(image, REFUSED, error=str(error))
        row = self._predict(image)
        self._journal.end.remote(path)
        return row

    def _predict(self, image: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        known: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="convunext-") as scratch:
            try:
                known["output"], report = self._apply(image["path"], Path(scratch), known)
                known |= {"state": DONE, "notes": describe(report)[0]}
            except StorageError as error:
                known |= {"state": FAILED, "error": str(error)}
            except ConvUNextError as error:
                cause = error.__cause__  # decoders raise without a number
                transient = isinstance(cause, OSError) and cause.errno is not None
                message = self._message(error, image["path"], scratch)
                known |= {"state": FAILED if transient else REFUSED, "error": message}
            except Exception as error:  # of a library: it becomes a row, and the other images are computed
                reason = FileError(image["path"], CREDENTIALS.censor(f"{type(error).__name__}: {error}"))
                known |= {"state": FAILED, "error": str(reason)}
        return self._row(image, seconds=time.perf_counter() - start, **known)

    def _apply(self, source: str, scratch: Path, known: dict[str, Any]) -> tuple[str, PredictionReport]:
        """Predict one image and return where its result lies; first put its height and width into `known`."""
        path, folder = Path(source), Path(self._output.path)
        if is_address(source):
            origin, name = folder_of(source)
            path = scratch / IN / name
            path.parent.mkdir()
            origin.fetch(name, path)
        if self._output.remote:
            folder = scratch / OUT
            folder.mkdir()
        with contextlib.suppress(FileError):
            known["height"], known["width"], _ = image_shape(path)
        result = folder / result_name(self._predictor, path)
        with self._predictor.reserve_memory(path):
            report = predict_file(self._predictor, path, result, self._job.options, ignore)
        if self._output.remote:
            beside = sorted(file for file in folder.iterdir() if file != result)
            for file in (*beside, result):  # where the result lies, nothing is missing
                self._output.store(file.name, file)
        return self._output / result.name, report

    def _message(self, error: ConvUNextError, source: str, scratch: str) -> str:
        """Return the message of an error, temporary paths replaced by those that the user knows."""
        folder = str(folder_of(source)[0]) if is_address(source) else ""
        return str(error).replace(f"{scratch}/{IN}", folder).replace(f"{scratch}/{OUT}", str(self._output))

    def _row(self, image: dict[str, Any], state: str, **known: Any) -> dict[str, Any]:
        defaults = {"error": "", "notes": "", "seconds": 0.0, "worker": self._name, "settings": self._job.settings}
        return {**image, **defaults, **known, "state": state}
