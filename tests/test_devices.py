"""A run on several devices or processes is the run of one: its weights, its log, its folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pytest

from dl_techniques.cli import main
from dl_techniques.errors import ArgumentError
from dl_techniques.images.files import Picture, write_image
from dl_techniques.training.checkpoint import list_checkpoints, step_of
from dl_techniques.training.distribution import on_devices
from dl_techniques.training.settings import DeviceSettings

BACKEND = keras.backend.backend()
JAX = pytest.mark.only_backend("jax")  # has several processes, and weights in parts
DEVICES = 8 if BACKEND == "jax" else 2  # TensorFlow traces every one of them
SIZE = {"steps": 6, "steps-per-epoch": 3, "batch-size": 8, "patch": 16, "initial-filters": 4, "blocks-per-level": 1}
SETTINGS = {
    "denoise": {"held-out": 2, "final-patch": 16, "depth": 2},
    "segment": {"depth": 3},  # three supervised outputs
}
# TensorFlow takes the number of its devices from code alone.
PROGRAM = """
import sys, keras
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(int(sys.argv[1]))]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
from dl_techniques.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six noisy images of a disk, and their masks."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for number in range(6):
        disk = (y - rng.uniform(10, 30)) ** 2 + (x - rng.uniform(10, 30)) ** 2 < 100
        noisy = (60 + 120 * disk + rng.normal(0, 10, disk.shape)).clip(0, 255)
        for name, pixels in (("images", noisy), ("masks", disk * 255)):
            (folder / name).mkdir(exist_ok=True)
            write_image(folder / name / f"{number}.png", Picture(pixels.astype("uint8")[..., None]))
    return folder


def start(arguments: list[str], devices: int = 1) -> subprocess.Popen:
    """Begin `convunext train` on a machine of so many devices."""
    # Compiling takes most of the time; both runs of a comparison are compiled alike.
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, **fast, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", PROGRAM, str(devices), "train", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_together(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """Begin the processes of a run on this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{found.getsockname()[1]}"
    together = ["--distributed", address, f"--processes={processes}"]
    return [start([*arguments, *together, f"--process={number}"]) for number in range(processes)]


def finish(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    """Return status, output and errors of processes when they have ended."""
    texts = [process.communicate(timeout=900) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def task(name: str, data: Path, changes: Mapping[str, int] = {}) -> list[str]:
    """Return the arguments of a short run but for its folder."""
    settings = {**SIZE, **SETTINGS[name], **changes}
    images = [f"--images={data / 'images'}"] + ([f"--masks={data / 'masks'}"] if name == "segment" else [])
    return [name, *images, *(f"--{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def single(data, tmp_path_factory) -> dict[str, Path]:
    """The folders of runs of one process on one device."""
    folder = tmp_path_factory.mktemp("single")
    names = ("denoise", "segment") if BACKEND == "jax" else ("denoise",)
    for name in names:
        ((status, _, errors),) = finish(start([*task(name, data), "-o", str(folder / name)]))
        assert status == 0, errors
    return {name: folder / name for name in names}


def state(run: Path) -> tuple[int, dict[str, np.ndarray]]:
    newest = list_checkpoints(run / "checkpoints")[0]
    with np.load(newest) as arrays:
        return step_of(newest), dict(arrays)


def assert_same_run(run: Path, expected: Path) -> None:
    """Weights, and what the optimizer and the average keep, differ by 1e-5 of themselves at most; so does the log."""
    (step, actual), (last, truth) = state(run), state(expected)
    assert step == last and actual.keys() == truth.keys()
    kinds: dict[str, list[str]] = {}
    for name, value in truth.items():
        if value.dtype.kind == "f":
            kinds.setdefault("model" if name.startswith("model/") else name.rsplit("_", 1)[-1], []).append(name)
        else:  # counters and states of random numbers, which would outweigh the rest
            np.testing.assert_array_equal(actual[name], value)
    assert {"model", "average", "momentum", "velocity"} <= kinds.keys()
    for names in kinds.values():
        one, other = (np.concatenate([arrays[name].ravel() for name in names]) for arrays in (actual, truth))
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)
    logs = [np.genfromtxt(folder / "log.csv", delimiter=",", skip_header=1) for folder in (run, expected)]
    np.testing.assert_allclose(*logs, rtol=1e-4)
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.mark.each_backend
@pytest.mark.parametrize("name", ["denoise", "segment"] if BACKEND == "jax" else ["denoise"])
def test_devices_share_the_run_of_one(data, single, tmp_path, name):
    if BACKEND == "torch":
        assert main(["train", *task(name, data), "--devices=all", "-o", str(tmp_path / "run")]) == 2
        return
    ((status, _, errors),) = finish(start([*task(name, data), "--devices=all", "-o", str(tmp_path / "run")], DEVICES))
    assert status == 0, errors
    assert_same_run(tmp_path / "run", single[name])


@JAX
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_run_of_one(data, single, tmp_path, processes):
    run = tmp_path / "run"
    first, *others = finish(*start_together([*task("denoise", data), "-o", str(run)], processes))
    assert first[0] == 0, first[2]
    assert first[1].strip().endswith(str(run / "report.html"))
    for status, output, errors in others:
        assert status == 0, errors
        assert not [line for line in output.splitlines() if not line.startswith("[Gloo]")]  # JAX tells of its links
    assert_same_run(run, single["denoise"])


@JAX
def test_a_lost_process_is_named_and_the_run_resumes_with_others(data, tmp_path):
    run = tmp_path / "run"
    arguments = [*task("denoise", data, {"steps": 3000, "steps-per-epoch": 20}), "-o", str(run)]
    first, second = start_together(arguments, 2)
    wait_for(run / "log.csv")
    second.kill()
    begin = time.monotonic()
    ((status, _, errors),) = finish(first)
    assert time.monotonic() - begin < 90  # JAX itself notices after 100
    assert status == 1 and f"pid {second.pid}) ended before the run did" in errors
    assert f"convunext train --resume {run}" in errors
    second.communicate()

    epochs = len((run / "log.csv").read_text().splitlines()) - 1
    processes = start_together([f"--resume={run}"], 4)
    log = (run / "log.csv").read_text()
    while (run / "log.csv").read_text().startswith(log) and len((run / "log.csv").read_text()) <= len(log):
        time.sleep(0.1)
        assert all(process.poll() is None for process in processes)
    processes[2].send_signal(signal.SIGTERM)  # all of them save after the same step and end
    ends = finish(*processes)
    assert [status for status, _, _ in ends] == [143] * 4
    begun = int(ends[0][1].split("· step ")[1].split()[0])
    assert 20 * (epochs - 1) <= begun <= 20 * epochs and begun > 0
    assert state(run)[0] > begun


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 900
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@JAX
def test_wide_weights_are_split_and_a_step_is_the_same():
    sizes = {"depth": 2, "initial_filters": 96, "blocks_per_level": 1}
    script = Path(__file__).parents[1] / "benchmarks" / "model_parallel.py"
    command = [sys.executable, str(script), "--variant=tiny", "--side=16", f"--set={json.dumps(sizes)}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["share_of_a_device"] <= 0.3 and found["difference_after_a_step"] <= 1e-4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices=0"], "`devices` must be at least 1"),
        (["--coordinator=127.0.0.1:1"], "`coordinator` must come with --distributed"),
        (["--model-parallel=0"], "`model_parallel` must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(data, tmp_path, capfd, flags, said):
    assert main(["train", *task("denoise", data), *flags, "-o", str(tmp_path / "run")]) == 2
    assert said in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.each_backend
def test_a_backend_that_cannot_names_one_that_can(data, tmp_path, capfd):
    if BACKEND == "jax":
        flags, said = ["--devices=900"], "`devices` must be at most"
    else:
        flags = ["--model-parallel=4"]
        said = {"tensorflow": "Choose --backend jax", "torch": "Choose --backend jax, or tensorflow"}[BACKEND]
    assert main(["train", *task("denoise", data), *flags, "-o", str(tmp_path / "run")]) == 2
    assert said in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.only_backend("tensorflow", "jax")
def test_batches_that_cannot_be_shared_are_refused_before_anything_is_written(data, tmp_path):
    arguments = [*task("denoise", data, {"batch-size": 6}), "--devices=4", "-o", str(tmp_path / "run")]
    ((status, _, errors),) = finish(start(arguments, 4))
    assert status == 2 and "that 4 devices can share equally" in errors
    assert not (tmp_path / "run").exists()


def test_nothing_changes_without_settings():
    with on_devices(DeviceSettings()):
        assert keras.distribution.distribution() is None
    with pytest.raises(ArgumentError, match="with --distributed"):
        DeviceSettings(process=1)
