"""A graph that nobody vouches for, in a process of its own: it may crash there, never end, or ask for all memory.

`python -m` runs the other side: it answers a message of arrays with one of arrays, over its standard input and output.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from dl_techniques.engines.engine import Graph, check_image, first_words
from dl_techniques.engines.formats import FORMATS, ArtifactFormat, Precision
from dl_techniques.engines.subprocess import module_command, module_environment

LOADING, COMPUTING = 120.0, 60.0  # seconds until a graph is loaded, and until an image of no size is computed
PER_PIXEL = 1e-4  # seconds more for each pixel
LENGTH = 8  # bytes of the number before a header


def load_isolated(form: ArtifactFormat, path: Path, precision: Precision = "float32") -> Graph:
    """Return the graph of an artifact, loaded and run in a process of its own, on the CPU.

    Raises:
        ValueError: It cannot be loaded.
        RuntimeError: Its process crashed, or did not answer in time.
    """
    process = _Process(form.name, str(path.resolve()), precision)
    return Graph(process.shape, process)


class _Process:
    """The process, as a function of arrays; once it has ended, each call says why."""

    def __init__(self, *arguments: str) -> None:
        self._lock, self._end = threading.Lock(), ""
        # Nothing that it says reaches the terminal: a graph may say anything.
        self._process = subprocess.Popen(
            module_command("dl_techniques.engines.isolation", *arguments),
            env=module_environment(CUDA_VISIBLE_DEVICES="-1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _stop, self._process)
        self.shape: list[int | None] = self._exchange((), LOADING)[0]["shape"]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return self._exchange(arrays, COMPUTING + PER_PIXEL * math.prod(arrays[0].shape[:3]))[1]

    def _exchange(self, arrays: Sequence[np.ndarray], seconds: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        stdin, stdout = (cast(BinaryIO, stream) for stream in (self._process.stdin, self._process.stdout))
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        with self._lock:
            if self._end:
                raise RuntimeError(self._end)
            timer = threading.Timer(seconds, stop)
            timer.start()
            try:
                if arrays:
                    _send(stdin, {}, arrays)
                header, results = _receive(stdout)
            except (OSError, EOFError) as error:
                status = self._process.wait()
                name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                self._end = f"no answer came within {seconds:.0f} s" if late.is_set() else f"its process ended: {name}"
                raise RuntimeError(self._end) from error
            except BaseException:
                self._end = "its process was stopped"  # an answer may be on its way
                self._process.kill()
                raise
            finally:
                timer.cancel()
        if "error" in header:
            raise ValueError(header["error"])
        return header, results


def _stop(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not written yet
            if stream is not None:
                stream.close()


def _send(stream: BinaryIO, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    described = [(array.dtype.str, array.shape) for array in arrays]
    content = json.dumps({**header, "arrays": described}).encode()
    stream.write(len(content).to_bytes(LENGTH, "big") + content)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def _receive(stream: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]]:
    header = json.loads(_read(stream, int.from_bytes(_read(stream, LENGTH), "big")))
    arrays = []
    for name, shape in header["arrays"]:
        dtype = np.dtype(name)
        arrays.append(np.frombuffer(_read(stream, dtype.itemsize * math.prod(shape)), dtype).reshape(shape))
    return header, arrays


def _read(stream: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        if not (count := stream.readinto(view)):  # type: ignore[attr-defined]
            raise EOFError
        view = view[count:]
    return content


# === The other side ===


def _serve(form: ArtifactFormat, path: Path, precision: Precision) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for what libraries print
    _limit_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    questions: queue.SimpleQueue[list[np.ndarray]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    try:
        graph: Graph = form.load(path, precision)
    except Exception as error:  # the errors of runtimes have no class in common
        _send(answers, {"error": first_words(error)})
        os._exit(1)
    _send(answers, {"shape": list(graph.shape)})
    while True:
        arrays = questions.get()
        try:
            outputs = [np.asarray(output) for output in graph.function(*arrays)]
            check_image(outputs, arrays[0])  # before it is sent
            _send(answers, {}, [output for output in outputs if output.dtype.kind in "fi"])
        except Exception as error:
            _send(answers, {"error": first_words(error)})


def _listen(questions: queue.SimpleQueue[list[np.ndarray]]) -> None:
    """Pass on what is asked, and end this process, whatever it computes, when nobody asks any more."""
    with contextlib.suppress(EOFError):
        while True:
            questions.put(_receive(sys.stdin.buffer)[1])
    os._exit(0)


def _limit_memory() -> None:
    """Let this process take no more memory than is free, and be the first to go where it is short (Linux)."""
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (free, free))
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _serve(FORMATS[sys.argv[1]], Path(sys.argv[2]), cast(Precision, sys.argv[3]))
