"""One training on several devices and hosts.

Data-parallel training keeps the weights on every device and gives each its rows of the batch; with `model_parallel` the
widest weights, and what the optimizer keeps of them, are split among devices. Keras does both (`keras.distribution`,
JAX); on TensorFlow, `tf.distribute.MirroredStrategy` does the first on one host. Process 0 alone touches the folder of
the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.errors import ArgumentError, ConvUNextError
from dl_techniques.training.heartbeat import SILENCE, Heartbeat, leave, this_member
from dl_techniques.training.settings import DeviceSettings

if TYPE_CHECKING:
    import keras

BATCH, MODEL = "batch", "model"  # axes of the mesh of devices
LEAST = 2**14  # numbers: a smaller weight is not split
Tree = Any


class _Elsewhere(BaseException):
    """The rest is done by process 0."""


@dataclass(frozen=True)
class _Group:
    """What a run is on: number of this process, of all, of parts of a batch."""

    process: int = 0
    processes: int = 1
    replicas: int = 1
    distribution: Any = None
    strategy: Any = None
    watch: Heartbeat | None = None


_group = _Group()


@contextlib.contextmanager
def on_devices(settings: DeviceSettings, resume: str = "") -> Iterator[None]:
    """Train on several devices in this context; all processes of a run enter it, only the first reaches its end.

    Args:
        settings: What to train on.
        resume: The command that goes on with the run, for the message when a process is lost.

    Raises:
        ArgumentError: There are not so many devices.
        ConvUNextError: The backend cannot, or the other processes cannot be reached.
    """
    global _group
    if settings.plain:
        yield
        return
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        _group = _mirrored(settings)
    elif backend == "jax":
        watch = _connect(settings, resume) if settings.distributed else None
        _group = replace(_distributed(settings), watch=watch)
    else:
        raise ConvUNextError("devices", f"must be 1 on {backend}.", "Choose --backend jax, or tensorflow on one host.")
    keras.distribution.set_distribution(_group.distribution)
    watch, whole = _group.watch, False
    try:
        yield
        whole = True
    except _Elsewhere:
        whole = True
        if watch is not None:
            watch.wait()
    except Exception as error:
        if watch is not None and type(error).__module__.startswith("jax"):
            time.sleep(SILENCE + 5)  # another is gone, most likely: the watch tells which, and ends this process
        raise
    finally:
        if watch is not None:
            if watch.agreed and not is_writer():
                watch.wait()  # for the writer to save
            watch.end(whole or watch.agreed)
        keras.distribution.set_distribution(None)
        _group = _Group()


def batch_share() -> tuple[int, int]:
    """Return the number of this process and how many there are."""
    return _group.process, _group.processes


def is_writer() -> bool:
    """Return whether this process is the one that touches the run's folder and talks."""
    return _group.process == 0


def leave_to_writer() -> None:
    """End `on_devices` here in all processes but the first."""
    if not is_writer():
        raise _Elsewhere


def check_batches(sizes: Sequence[int]) -> None:
    """Refuse batches that cannot be divided among the devices.

    Raises:
        ArgumentError: One cannot.
    """
    for size in sizes:
        if size % _group.replicas:
            rule = f"must give batches that {_group.replicas} devices can share equally, but one has {size} samples"
            remedy = "Choose a multiple; if later patches are larger, set --final-patch equal to --patch."
            raise ArgumentError("batch_size", rule, size, remedy)


@contextlib.contextmanager
def model_scope() -> Iterator[None]:
    """Build models in this context; TensorFlow needs to be told so."""
    with _group.strategy.scope() if _group.strategy is not None else contextlib.nullcontext():
        yield


def faster_backend_hint() -> str | None:
    """Return what to tell a user whose training on this processor would be much faster on TensorFlow."""
    import keras

    backend = keras.backend.backend()
    if _group.processes > 1 or backend == "tensorflow" or importlib.util.find_spec("tensorflow") is None:
        return None
    if backend == "jax":
        import jax

        on_processor = jax.default_backend() == "cpu"
    else:
        import torch

        on_processor = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if not on_processor:
        return None
    return f"slow: without a GPU, {backend} trains several times slower than TensorFlow; faster: --backend tensorflow"


def mirrored_replicas() -> int:
    """Return on how many devices TensorFlow mirrors the model, 0 if it does not."""
    return _group.replicas if _group.strategy is not None else 0


def as_training_data(make: Callable[[], Iterator[tuple]]) -> Any:
    """Return the batches that `make` gives as `fit` takes them.

    TensorFlow's strategies read a batch to see its shapes, and begin again; an iterator would lose it.
    """
    if _group.strategy is None:
        return make()
    import tensorflow as tf

    def spec(array: np.ndarray) -> Any:
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    return tf.data.Dataset.from_generator(make, output_signature=tf.nest.map_structure(spec, next(make())))


@contextlib.contextmanager
def on_single_device() -> Iterator[None]:
    """Compute on one device of this process in this context, whatever the others do."""
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
    """Return a copy of all of a variable, wherever its parts are; all processes call it alike."""
    import keras

    if _group.processes > 1 and not variable.value.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(variable.value, tiled=True))
    return np.array(keras.ops.convert_to_numpy(variable))


def local_copy(model: keras.Model, copy: keras.Model | None = None) -> keras.Model:
    """Return the model, or on several devices a copy on one of this process; all processes call it alike."""
    if _group.distribution is None and _group.strategy is None:
        return model
    weights = [gathered_value(weight) for weight in model.weights]
    with on_single_device():
        own = copy if copy is not None else type(model).from_config(model.get_config())
        own.set_weights(weights)
    return own


def broadcast_from_writer(values: Tree) -> Tree:
    """Return what process 0 has: arrays or numbers, in a structure that is the same in all processes."""
    if _group.processes == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def max_over_processes(value: int) -> int:
    """Return the highest of a number that each process has."""
    if _group.processes == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def agreed_signal(number: int) -> int:
    """Return the highest number of a signal that came in any process, 0 if in none; all stop after the same step."""
    number = max_over_processes(number)
    if number and _group.watch is not None:
        _group.watch.agreed = True
    return number


def _chosen(settings: DeviceSettings, available: list) -> list:
    if settings.devices in ("all", None):
        return available
    if settings.devices > len(available):
        rule = f"must be at most {len(available)}, the devices of this host"
        raise ArgumentError("devices", rule, settings.devices)
    return available[: settings.devices]


def _mirrored(settings: DeviceSettings) -> _Group:
    import tensorflow as tf

    if settings.distributed or settings.model_parallel > 1:
        name = "distributed" if settings.distributed else "model_parallel"
        raise ConvUNextError(name, "is not available on TensorFlow.", "Choose --backend jax.")
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name for device in _chosen(settings, found)]
    return _Group(replicas=len(names), strategy=tf.distribute.MirroredStrategy(names))


def _distributed(settings: DeviceSettings) -> _Group:
    import jax
    import keras

    found = keras.distribution.list_devices()
    if settings.distributed and settings.devices not in ("all", None):
        raise ArgumentError("devices", "must be all with --distributed", settings.devices)
    names = _chosen(settings, found)
    parts = settings.model_parallel
    if jax.local_device_count() % parts or len(names) % parts:
        rule = f"must divide the number of devices, {min(len(names), jax.local_device_count())} on this host"
        raise ArgumentError("model_parallel", rule, parts)
    if parts == 1:
        distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    else:
        mesh = keras.distribution.DeviceMesh((len(names) // parts, parts), (BATCH, MODEL), names)
        distribution = split_large_weights(mesh)
    return _Group(jax.process_index(), jax.process_count(), len(names) // parts, distribution)


def split_large_weights(mesh: keras.distribution.DeviceMesh) -> keras.distribution.ModelParallel:
    """Return a distribution that splits every large weight along its widest axis, as far as the mesh divides it.

    The optimizer's variables lie as the weights that they belong to.
    """
    import keras

    class SplitWide(keras.distribution.ModelParallel):
        def get_variable_layout(self, variable):
            if getattr(variable, "_layout", None) is not None:
                return variable._layout
            parts = mesh.shape[1]
            shape = variable.shape
            axes: list[str | None] = [None] * len(shape)
            wide = [axis for axis, extent in enumerate(shape) if extent % parts == 0]
            if wide and np.prod(shape) >= LEAST:
                axes[max(wide, key=lambda axis: (shape[axis], axis))] = MODEL
            return keras.distribution.TensorLayout(axes, mesh)

    layouts = keras.distribution.LayoutMap(mesh)
    return SplitWide(layout_map=layouts, batch_dim_name=BATCH, auto_shard_dataset=False)


def _connect(settings: DeviceSettings, resume: str) -> Heartbeat:
    import jax
    from jax.experimental import multihost_utils

    with contextlib.suppress(AttributeError):  # of versions without it
        jax.config.update("jax_enable_preemption_service", False)  # catches SIGTERM, and waits to be asked for it
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process,
            heartbeat_timeout_seconds=round(2 * SILENCE),
            shutdown_timeout_seconds=10,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        remedy = "Give --coordinator HOST:PORT, --processes and --process, or start it under SLURM or Open MPI."
        raise ConvUNextError("distributed", f"cannot be set up: {error}", remedy) from error
    process, others = jax.process_index(), jax.process_count() - 1

    def lost(what: str) -> None:
        leave(f"{what}; stopped. Resume with any number of processes: {resume} --distributed …")

    watch = Heartbeat(this_member(process), lost)
    first = this_member(0)
    word = np.zeros(512, np.uint8)
    begin = None
    if process == 0:
        host = settings.coordinator.rsplit(":", 1)[0] if settings.coordinator else first.place.split(",")[0]
        key = secrets.token_bytes(32)
        port, begin = watch.host(host, others, key)
        told = f"{port} {os.getpid()} {host}".encode()
        word[: 33 + len(told)] = np.frombuffer(key + bytes([len(told)]) + told, np.uint8)
    word = np.asarray(multihost_utils.broadcast_one_to_all(word)).astype(np.uint8).tobytes()
    key, told = word[:32], word[33 : 33 + word[32]].decode()
    port, pid, host = told.split(" ", 2)
    if begin is not None:
        begin()
    else:
        watch.join(host, int(port), key, f"{host}, pid {pid}")
    return watch
