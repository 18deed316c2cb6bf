"""Training on several devices and hosts.

In data-parallel training every device holds all weights and computes its rows of the batch; with `model_parallel` the
largest weights and their optimizer state are split among devices. `keras.distribution` does both on JAX; on TensorFlow,
`tf.distribute.MirroredStrategy` does the first on one host. Process 0 is the writer: it alone writes to the run's
folder and to the terminal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.errors import ArgumentError, ConvUNextError
from dl_techniques.training.heartbeat import TIMEOUT, Heartbeat, abort, this_member
from dl_techniques.training.settings import DeviceSettings

if TYPE_CHECKING:
    import keras

BATCH, MODEL = "batch", "model"  # axes of the device mesh
SPLIT_FROM = 2**14  # values in a weight; smaller ones are not split
Tree = Any


class _LeftToWriter(BaseException):
    """Ends `on_devices` in a process that is not the writer."""


@dataclass(frozen=True)
class _ProcessGroup:
    """The processes of a run: index of this one, their number, and the number of parts that a batch is divided into."""

    process: int = 0
    processes: int = 1
    replicas: int = 1
    distribution: Any = None
    strategy: Any = None
    heartbeat: Heartbeat | None = None


_group = _ProcessGroup()


@contextlib.contextmanager
def on_devices(settings: DeviceSettings, resume: str = "") -> Iterator[None]:
    """Train on several devices in this context; all processes of a run enter it, only the writer runs it to its end.

    Args:
        settings: Devices and processes.
        resume: Command that resumes the run, for the message when a process is lost.

    Raises:
        ArgumentError: There are fewer devices than asked for.
        ConvUNextError: The backend does not support it, or the other processes cannot be reached.
    """
    global _group
    if settings.plain:
        yield
        return
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        _group = _mirrored_group(settings)
    elif backend == "jax":
        heartbeat = _connect(settings, resume) if settings.distributed else None
        _group = replace(_distributed_group(settings), heartbeat=heartbeat)
    else:
        raise ConvUNextError("devices", f"must be 1 on {backend}.", "Choose --backend jax, or tensorflow on one host.")
    keras.distribution.set_distribution(_group.distribution)
    heartbeat, completed = _group.heartbeat, False
    try:
        yield
        completed = True
    except _LeftToWriter:
        completed = True
        if heartbeat is not None:
            heartbeat.wait()
    except Exception as error:
        if heartbeat is not None and type(error).__module__.startswith("jax"):
            # JAX fails here because another process is lost, most likely. The heartbeat will report which one and end
            # this process; without the wait the user would see JAX's error in place of the cause.
            time.sleep(TIMEOUT + 5)
        raise
    finally:
        if heartbeat is not None:
            if heartbeat.stop_agreed and not is_writer():
                heartbeat.wait()  # until the writer has saved
            heartbeat.stop(completed or heartbeat.stop_agreed)
        keras.distribution.set_distribution(None)
        _group = _ProcessGroup()


def batch_share() -> tuple[int, int]:
    """Return the index of this process and the number of processes, each of which makes its part of every batch."""
    return _group.process, _group.processes


def is_writer() -> bool:
    """Return whether this process writes to the run's folder and to the terminal."""
    return _group.process == 0


def leave_to_writer() -> None:
    """End `on_devices` here in all processes but the writer."""
    if not is_writer():
        raise _LeftToWriter


def check_batches(sizes: Sequence[int]) -> None:
    """Raise `ArgumentError` unless batches of these sizes can be divided equally among the devices."""
    for size in sizes:
        if size % _group.replicas:
            rule = f"must give batches that {_group.replicas} devices can share equally, but one has {size} samples"
            remedy = "Choose a multiple; if later patches are larger, set --final-patch equal to --patch."
            raise ArgumentError("batch_size", rule, size, remedy)


@contextlib.contextmanager
def model_scope() -> Iterator[None]:
    """Build models in this context: TensorFlow's strategy must create their variables."""
    with _group.strategy.scope() if _group.strategy is not None else contextlib.nullcontext():
        yield


def faster_backend_hint() -> str | None:
    """Return a hint for a user whose training on this CPU would be much faster on TensorFlow, else `None`."""
    import keras

    backend = keras.backend.backend()
    if _group.processes > 1 or backend == "tensorflow" or importlib.util.find_spec("tensorflow") is None:
        return None
    if backend == "jax":
        import jax

        on_cpu = jax.default_backend() == "cpu"
    else:
        import torch

        on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if not on_cpu:
        return None
    return f"slow: without a GPU, {backend} trains several times slower than TensorFlow; faster: --backend tensorflow"


def mirrored_replicas() -> int:
    """Return the number of devices on which TensorFlow mirrors the model, 0 if it does not."""
    return _group.replicas if _group.strategy is not None else 0


def as_training_data(make_batches: Callable[[], Iterator[tuple]]) -> Any:
    """Return batches in the form that `fit` needs.

    TensorFlow's strategies read one batch for its shapes and then start again: an iterator would lose that batch.
    """
    if _group.strategy is None:
        return make_batches()
    import tensorflow as tf

    def spec(array: np.ndarray) -> Any:
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    signature = tf.nest.map_structure(spec, next(make_batches()))
    return tf.data.Dataset.from_generator(make_batches, output_signature=signature)


@contextlib.contextmanager
def on_single_device() -> Iterator[None]:
    """Compute on one device of this process in this context, independently of the other processes."""
    if _group.distribution is None:
        yield
        return
    import keras

    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(_group.distribution)


def gathered_value(variable: Any) -> np.ndarray:
    """Return the full value of a variable that may be split among devices; every process must call it."""
    import keras

    if _group.processes > 1 and not variable.value.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(variable.value, tiled=True))
    return np.array(keras.ops.convert_to_numpy(variable))


def local_copy(model: keras.Model, copy: keras.Model | None = None) -> keras.Model:
    """Return the model, or on several devices a copy on one device, reusing `copy`; every process must call it."""
    if _group.distribution is None and _group.strategy is None:
        return model
    weights = [gathered_value(weight) for weight in model.weights]
    with on_single_device():
        local = copy if copy is not None else type(model).from_config(model.get_config())
        local.set_weights(weights)
    return local


def broadcast_from_writer(values: Tree) -> Tree:
    """Return the writer's arrays or numbers; their structure is the same in all processes."""
    if _group.processes == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def max_over_processes(value: int) -> int:
    """Return the largest of the values that the processes pass."""
    if _group.processes == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def agreed_signal(number: int) -> int:
    """Return the largest signal number received by any process, 0 if none: all processes stop after the same step."""
    number = max_over_processes(number)
    if number and _group.heartbeat is not None:
        _group.heartbeat.stop_agreed = True
    return number


def _select_devices(settings: DeviceSettings, available: list) -> list:
    if settings.devices in ("all", None):
        return available
    if settings.devices > len(available):
        rule = f"must be at most {len(available)}, the devices of this host"
        raise ArgumentError("devices", rule, settings.devices)
    return available[: settings.devices]


def _mirrored_group(settings: DeviceSettings) -> _ProcessGroup:
    import tensorflow as tf

    if settings.distributed or settings.model_parallel > 1:
        name = "distributed" if settings.distributed else "model_parallel"
        raise ConvUNextError(name, "is not available on TensorFlow.", "Choose --backend jax.")
    available = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in _select_devices(settings, available)]
    return _ProcessGroup(replicas=len(names), strategy=tf.distribute.MirroredStrategy(names))


def _distributed_group(settings: DeviceSettings) -> _ProcessGroup:
    import jax
    import keras

    available = keras.distribution.list_devices()
    if settings.distributed and settings.devices not in ("all", None):
        raise ArgumentError("devices", "must be all with --distributed", settings.devices)
    names = _select_devices(settings, available)
    parts = settings.model_parallel
    if jax.local_device_count() % parts or len(names) % parts:
        rule = f"must divide the number of devices, {min(len(names), jax.local_device_count())} on this host"
        raise ArgumentError("model_parallel", rule, parts)
    if parts == 1:
        distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    else:
        mesh = keras.distribution.DeviceMesh((len(names) // parts, parts), (BATCH, MODEL), names)
        distribution = split_large_weights(mesh)
    return _ProcessGroup(jax.process_index(), jax.process_count(), len(names) // parts, distribution)


def split_large_weights(mesh: keras.distribution.DeviceMesh) -> keras.distribution.ModelParallel:
    """Return a distribution that splits every large weight along its widest axis that the mesh divides evenly.

    Optimizer variables are split like the weights that they belong to.
    """
    import keras

    class SplitLargeWeights(keras.distribution.ModelParallel):
        def get_variable_layout(self, variable):
            if getattr(variable, "_layout", None) is not None:
                return variable._layout
            parts = mesh.shape[1]
            shape = variable.shape
            axes: list[str | None] = [None] * len(shape)
            divisible = [axis for axis, extent in enumerate(shape) if extent % parts == 0]
            if divisible and np.prod(shape) >= SPLIT_FROM:
                axes[max(divisible, key=lambda axis: (shape[axis], axis))] = MODEL
            return keras.distribution.TensorLayout(axes, mesh)

    layout_map = keras.distribution.LayoutMap(mesh)
    return SplitLargeWeights(layout_map=layout_map, batch_dim_name=BATCH, auto_shard_dataset=False)


def _connect(settings: DeviceSettings, resume: str) -> Heartbeat:
    import jax
    from jax.experimental import multihost_utils

    with contextlib.suppress(AttributeError):  # JAX versions without the option
        jax.config.update("jax_enable_preemption_service", False)  # would catch SIGTERM
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process,
            heartbeat_timeout_seconds=round(2 * TIMEOUT),
            shutdown_timeout_seconds=10,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        remedy = "Give --coordinator HOST:PORT, --processes and --process, or start it under SLURM or Open MPI."
        raise ConvUNextError("distributed", f"cannot be set up: {error}", remedy) from error
    process, others = jax.process_index(), jax.process_count() - 1

    def on_loss(what: str) -> None:
        abort(f"{what}; stopped. Resume with any number of processes: {resume} --distributed …")

    # The handshake: process 0 listens on a free port and draws a key; JAX broadcasts port, address and key as one array
    # of bytes (32 of key, one of length, the text), since nothing else connects the processes yet. Only then may
    # process 0 wait for the connections of the others.
    heartbeat = Heartbeat(this_member(process), on_loss)
    accept_all = None
    message = np.zeros(512, np.uint8)
    if process == 0:
        host = settings.coordinator.rsplit(":", 1)[0] if settings.coordinator else socket.gethostname()
        key = secrets.token_bytes(32)
        port, accept_all = heartbeat.listen(host, others, key)
        address = f"{port} {os.getpid()} {host}".encode()
        message[: 33 + len(address)] = np.frombuffer(key + bytes([len(address)]) + address, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8).tobytes()
    key, (port, pid, host) = received[:32], received[33 : 33 + received[32]].decode().split(" ", 2)
    if accept_all is not None:
        accept_all()
    else:
        heartbeat.connect(host, int(port), key, f"{host}, pid {pid}")
    return heartbeat
