"""A Ray cluster: one of this machine's own, or one that is running."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dl_techniques.errors import ArgumentError, ConvUNextError, pip_install

RUNTIME_BYTES = 10**9  # what Python, TensorFlow and Ray take in a worker, beside --max-memory
STORE_BYTES = 256 * 2**20  # object store of a cluster of our own: only rows go through it
PATIENCE = 10.0  # seconds for a cluster to answer
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class Workers:
    """Number of workers; cores, GPUs (0 or 1) and threads of each, a thread per image; number of machines."""

    count: int
    cpus: int
    gpus: int
    threads: int
    nodes: int

    def __str__(self) -> str:
        what = "one GPU" if self.gpus else f"{self.cpus} core{'s' if self.cpus > 1 else ''}"
        nodes = f"{self.nodes} machine{'s' if self.nodes > 1 else ''}"
        return f"{self.count} worker{'s' if self.count > 1 else ''} of {what} each on {nodes}"


def require_ray() -> None:
    """Raise `ConvUNextError` where Ray is not installed."""
    for module in ("ray", "pyarrow"):
        if importlib.util.find_spec(module) is None:
            reason = f"needs the module {module!r}, which is not installed."
            raise ConvUNextError("--ray", reason, f"Install it: {pip_install('ray')}.")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine that ends with the context; one in use already is taken.

    Args:
        address: `HOST:PORT`, `auto` for the cluster that this machine is part of, or `None` to start one.

    Raises:
        ConvUNextError: There is no such cluster.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto"):
        _check_listening(address)
    own = {} if address else {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with warnings.catch_warnings(), _quiet_stderr():
            warnings.simplefilter("ignore")
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise _no_cluster(address, error) from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray's would end the process without a message
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise `ConvUNextError` if nothing listens at an address: Ray itself would wait forever."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ArgumentError("ray", "must be HOST:PORT or auto", address)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> ConvUNextError:
    words = str(error).strip().splitlines()
    reason = f"no cluster answers at {address!r}: {words[0] if words else type(error).__name__}"
    remedy = "Start one (ray start --head), or leave the address out to start one on this machine."
    return ConvUNextError("--ray", reason.rstrip(".") + ".", remedy)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what C++ code writes while Ray starts."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def share_out(nodes: list[dict[str, float]], memory: int, on_gpu: bool, remote: bool) -> Workers:
    """Return how many workers a cluster has room for: one for each GPU, or for each share of the cores.

    `nodes` are the resources of each machine, `memory` the bytes of a worker beside its runtime; `remote` images come
    over a network, which takes time that cores do not. Raises `ArgumentError` where no machine has room for one worker.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if on_gpu and gpus:
        nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
        cores = min(max(1, int(node.get("CPU", 1) // node["GPU"])) for node in nodes)
        return Workers(gpus, cores, 1, min(max(cores, 2), 8), len(nodes))
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not nodes:
        raise ArgumentError("ray", "must name a cluster that has cores or GPUs", "none", "Add machines to it.")
    need = memory + RUNTIME_BYTES
    rooms = [(int(node["CPU"]), int(node.get("memory", need) // need)) for node in nodes]
    # One core each, or more where the memory does not suffice for so many workers.
    share = max(-(-cores // max(room, 1)) for cores, room in rooms)
    count = sum(cores // share for cores, _ in rooms)
    return Workers(count, share, 0, 2 if remote else 1, len(nodes))


def resources() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def silence_data() -> Any:
    """Return Ray Data, its own progress bars and messages disabled."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray.data
