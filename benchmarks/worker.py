"""A contestant in a process of its own, which keeps its model and runs steps when it is asked.

`Worker` is the asking side. The asked side, `python benchmarks/worker.py`, reads a line of JSON for each request and
answers with one: contestants can so take turns, whatever backends they need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS, Built, Contestant, Job, machine_backend, save_network

OWN: dict[str, Contestant] = {  # not rows of a table
    "machine": Contestant("the machine", lambda job: _machine(job), machine_backend()),
    "save": Contestant("the network as a file", save_network),
}


class WorkerError(RuntimeError):
    """Say why a contestant cannot take part."""


class Worker:
    """A contestant's process, seen from the one that compares.

    Args:
        name: Key of `CONTESTANTS` or `OWN`.
        job: What it computes.
        cache: Folder for what it converts or compiles.

    Attributes:
        facts: What the contestant told of itself.
        seconds_to_build: From the start of the process to the first request it can take.

    Raises:
        WorkerError: It could not be built; the message says why.
    """

    def __init__(self, name: str, job: Job, cache: Path) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()
        environment = environment_of(name, job, cache)
        command = [sys.executable, __file__, name, json.dumps(asdict(job))]
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.facts: dict[str, Any] = self._answer()
        self.seconds_to_build = time.perf_counter() - start

    def run(self, work: str, steps: int = 1) -> list[float]:
        """Return the seconds of each of so many steps of a work, one after the other."""
        return self._ask(work=work, steps=steps)["seconds"]

    def peak_memory(self) -> dict[str, int]:
        """Return the most bytes that were in use so far: `resident` in main memory, `device` on a GPU if it has one."""
        return self._ask(work="peak")

    def close(self) -> None:
        """End the process; its memory is free afterwards."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _ask(self, **request) -> dict[str, Any]:
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(json.dumps(request) + "\n")
                stdin.flush()
        except BrokenPipeError:
            pass  # it has died; its answer says so
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        line = stdout.readline() if stdout is not None else ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.close()
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}" + (f": {lines[-1]}" if lines else "")


def environment_of(name: str, job: Job, cache: Path) -> dict[str, str]:
    """Return the environment variables of a contestant's process."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", "CONVUNEXT_CACHE": str(cache / "conversions")}
    changes = {
        **quiet,
        "KERAS_BACKEND": (CONTESTANTS | OWN)[name].backend,
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        # Several contestants share one GPU: none may take all of its memory.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if job.device == "cpu":
        changes |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    if job.threads is not None:
        count = str(job.threads)
        changes |= {"OMP_NUM_THREADS": count, "TF_NUM_INTRAOP_THREADS": count}
    return {**os.environ, **changes}


# === The asked side ===


def peak_resident() -> int:
    """Return the most bytes of main memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # what resource tells on Linux holds the memory of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _machine(job: Job) -> Built:
    """Return matrix products and copies as works, and what the graph needs of each."""
    from roofline import machine_works

    works, facts = machine_works(job)
    return Built(works, facts)


def _serve(name: str, job: Job, answer) -> None:
    """Build, say so, then do what each line asks."""
    built = (CONTESTANTS | OWN)[name].build(job)
    answer(built.facts)
    for line in sys.stdin:
        request = json.loads(line)
        if request["work"] == "peak":
            device = {"device": built.peak_device_memory()} if built.peak_device_memory else {}
            answer({"resident": peak_resident(), **device})
            continue
        step, seconds = built.works[request["work"]], []
        for _ in range(request["steps"]):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds})


def main(name: str, job: Job) -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    if job.threads is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        _serve(name, job, answer)
    except ModuleNotFoundError as error:
        answer({"error": f"{error.name} is not installed" if error.name else str(error)})
    except Exception as error:  # of any library: the row tells it and the others go on
        answer({"error": (str(error).strip() or type(error).__name__).splitlines()[0]})


if __name__ == "__main__":
    main(sys.argv[1], Job(**json.loads(sys.argv[2])))
