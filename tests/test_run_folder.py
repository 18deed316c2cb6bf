"""What a run writes: refused before it begins where it cannot, whole or not there when the disk ends, resumed after."""

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main, training
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.tasks.segmentation.evaluation import SegmentationEvaluation
from dl_techniques.training import callbacks, trainer
from dl_techniques.training.checkpoint import list_checkpoints, step_of
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.run_folder import read_log
from dl_techniques.training.trainer import train

pytestmark = pytest.mark.usefixtures("eager")

QUIET = Console(quiet=True)
SMALL = {
    "steps": 6, "steps_per_epoch": 2, "patch": 16, "batch_size": 2, "depth": 2, "initial_filters": 4,
    "preview_every": 1, "convnext_version": "v1",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(5):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((5, 6))).astype("uint8")
        Image.fromarray(np.uint8(100 * mask + rng.integers(0, 90, mask.shape))).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


def settings(data, output, **changes) -> SegmentationConfig:
    sources = {"images": str(data / "images"), "masks": str(data / "masks")}
    return SegmentationConfig(output=output, **{**sources, **SMALL, **changes})


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run that nothing stopped."""
    config = settings(data, tmp_path_factory.mktemp("runs") / "run")
    train(config, QUIET)
    return config


def assert_same_end(one: Path, other: Path) -> None:
    states = [np.load(list_checkpoints(folder / "checkpoints")[0]) for folder in (one, other)]
    assert states[0].files == states[1].files
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0].files)
    assert read_log(one) == read_log(other)
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()


# === before anything is read ===


@contextlib.contextmanager
def nobody():
    """Be a user whom permissions hold back, if this is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("task", ["segment", "denoise"])
def test_output_that_cannot_be_written_is_refused_before_the_data_are_read(task, tmp_path, capfd):
    (tmp_path / "file").touch()
    flags = ["--images=nowhere", *(["--masks=nowhere"] if task == "segment" else [])]
    assert main(["train", task, *flags, f"--output={tmp_path / 'file' / 'run'}"]) == 2
    assert "file/run: cannot be written: " in capfd.readouterr().err
    assert main(["plan", task, *flags, f"--output={tmp_path / 'file' / 'plan.toml'}"]) == 2
    assert "cannot be written: " in capfd.readouterr().err


def test_folder_without_permission_is_refused_before_the_data_are_read():
    folder = Path(tempfile.mkdtemp())  # not pytest's, to which nobody else has a way
    try:
        folder.chmod(0o555)
        config = DenoisingConfig(images="nowhere", output=folder / "runs" / "run")
        with nobody(), pytest.raises(FileError, match="run: cannot be written: .*Permission denied.*another --output"):
            trainer.train(config, QUIET, create_recipe=lambda config, console: pytest.fail("read"))
        assert not list(folder.iterdir())
    finally:
        shutil.rmtree(folder)


def test_memory_too_small_for_a_tile_is_refused_before_the_folder_is_made(data, tmp_path):
    with pytest.raises(ArgumentError, match="`max_memory` must leave .* MB for a tile"):
        train(settings(data, tmp_path / "run", max_memory="1KB"), QUIET)
    assert not (tmp_path / "run").exists()


# === a disk that ends ===


@contextlib.contextmanager
def ending_disk(monkeypatch, kind, method, room):
    """Let no file grow beyond `room` bytes while a method runs, from its second call on."""
    call, calls = getattr(kind, method), []

    def limited(self, *args):
        calls.append(args)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) > 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            return call(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, limited)
        yield


@pytest.mark.parametrize(
    "kind, method, changes, named",
    [
        (callbacks.EpochLog, "on_epoch_end", {}, "log.csv: "),
        (callbacks.StateCheckpoint, "save", {}, r"checkpoints/step-000000004-[0-9a-f]+\.npz: "),
        (callbacks.Validation, "on_epoch_end", {"preview_every": 0, "learning_rate": 2e-3}, "best.keras: "),
        (callbacks.Validation, "on_epoch_end", {}, r"previews/epoch-0002-\d\.png: "),
    ],
    ids=["log", "checkpoint", "best", "preview"],
)
def test_run_stopped_by_a_full_disk_is_named_and_resumes_to_the_same_end(
    kind, method, changes, named, data, finished, tmp_path, monkeypatch, capfd
):
    config = settings(data, tmp_path / "run", **changes)
    if "best" in named:  # every validation brings a better one
        better = itertools.count(1)
        logged = lambda _: {"dice": next(better) / 100, "iou": 0.0}  # noqa: E731
        monkeypatch.setattr(SegmentationEvaluation, "logged", logged)
    with (
        ending_disk(monkeypatch, kind, method, room=8),
        pytest.raises(
            FileError, match=f"{named}cannot be .*Then resume with: convunext train --resume {config.output}"
        ),
    ):
        train(config, QUIET)
    assert not list(config.output.rglob("*.tmp"))
    assert list_checkpoints(config.output / "checkpoints")[0].name.startswith("step-000000002")
    assert main(["train", "--resume", str(config.output)]) == 0
    if "best" not in named:
        assert_same_end(config.output, finished.output)


# === what a run was begun on ===


@pytest.fixture(scope="module")
def unspoiled(data, tmp_path_factory):
    """A finished run beside its data, and a copy of both."""
    folder = tmp_path_factory.mktemp("own")
    config = settings(shutil.copytree(data, folder / "here" / "data"), folder / "here" / "run")
    train(config, QUIET)
    shutil.copytree(folder / "here", folder / "copy")
    return config


@pytest.fixture
def own(unspoiled):
    """A finished run and its data, to be spoiled: back as they were, at the paths that the run knows."""
    here = unspoiled.output.parent
    shutil.rmtree(here)
    shutil.copytree(here.with_name("copy"), here)
    return unspoiled


def resumed(config) -> tuple[int, str]:
    """Resume a run from the command line; return the exit status and what was printed."""
    console = Console(record=True, width=300)
    try:
        train(config, console, resume=True)
    except FileError as error:
        return 2, str(error)
    return 0, console.export_text()


def test_resuming_on_other_files_names_them(own):
    images, masks = Path(own.images), Path(own.masks)
    kept = (masks / "1.png").read_bytes()
    Image.fromarray(1 - np.array(Image.open(masks / "1.png"))).save(masks / "1.png")
    status, told = resumed(own)
    assert status == 2 and f"since then 1 replaced: {masks / '1.png'}. Restore the files, or start a new run" in told
    (masks / "1.png").write_bytes(kept)
    for folder in (images, masks):  # in another order, in which a seed draws others
        (folder / "0.png").rename(folder / "x.png")
    status, told = resumed(own)
    assert status == 2 and f"2 removed: {images / '0.png'}, " in told and "2 added: " in told and "x.png" in told
    for folder in (images, masks):
        (folder / "x.png").rename(folder / "0.png")
    assert resumed(own)[0] == 0


def test_a_run_resumes_from_another_working_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    train(settings(data, tmp_path / "run", images="images", masks="masks", steps=2), QUIET)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run"]) == 0


def test_run_knows_what_it_was_computed_with_and_keeps_to_its_backend(own, monkeypatch, capfd):
    path = own.output / "config.json"
    stored = json.loads(path.read_text())
    versions = stored["versions"]
    here = keras.backend.backend()
    assert versions["backend"] == here and versions["keras"] == keras.__version__ and here in versions
    assert {"python", "numpy", "convunext"} <= set(versions)
    path.write_text(json.dumps({**stored, "versions": {**versions, "numpy": "1.0"}}))
    assert "note: numpy was 1.0 and is " in resumed(own)[1]
    other = next(name for name in ("torch", "jax") if name != here)
    path.write_text(json.dumps({**stored, "versions": {**versions, "backend": other}}))
    monkeypatch.setenv("KERAS_BACKEND", here)
    assert main(["train", "--resume", str(own.output)]) == 2
    told = capfd.readouterr().err
    assert f"was started on {other}; on {here} its result would differ. Set KERAS_BACKEND={other}, or add" in told
    chosen = []
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(training, "choose_backend", chosen.append)
    assert main(["train", "--resume", str(own.output)]) == 2 and chosen == [other]


# === damaged weights ===


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_best_weights_of_a_finished_run_are_taken_from_its_model(own, finished):
    before = (own.output / "metrics.json").read_text()
    damage(own.output / "best.keras")
    status, told = resumed(own)
    assert status == 0 and "best.keras: damaged, renamed; it held the weights of step" in told
    assert "Restored from model.keras" in told and (own.output / "metrics.json").read_text() == before
    assert (own.output / "best.keras.damaged").exists()


def test_lost_best_weights_are_reported_and_intact_ones_are_used(own):
    (own.output / "best.keras").write_bytes((own.output / "best.keras").read_bytes()[:1000])
    damage(own.output / "model.keras")
    status, told = resumed(own)
    assert status == 0 and "which are lost. The best of the remaining steps replace them" in told
    assert "best.keras: missing; the weights of step" in told and "those of the last step are used" in told
    assert keras.saving.load_model(own.output / "model.keras", compile=False, safe_mode=True).output_channels == 1


def test_damaged_best_weights_of_a_stopped_run_are_found_again(data, finished, tmp_path, monkeypatch):
    config, save = settings(data, tmp_path / "run"), callbacks.StateCheckpoint.save

    def die(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(callbacks.StateCheckpoint, "save", die)
        train(config, QUIET)
    damage(config.output / "best.keras")
    status, told = resumed(config)
    assert status == 0 and "it held the weights of step 2 (dice 0." in told and "those of the last" not in told
    one, other = (np.load(list_checkpoints(folder / "checkpoints")[0]) for folder in (config.output, finished.output))
    assert all(np.array_equal(one[name], other[name]) for name in one.files)


# === signals, locks, and sets that are nearly empty ===


# Eager, as the trainings of this process are.
PROGRAM = """
import sys, keras
if keras.backend.backend() == "tensorflow":
    import tensorflow
    tensorflow.config.run_functions_eagerly(True)
from dl_techniques.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_a_training_saves_and_prints_how_to_resume(sent, status, data, tmp_path):
    flags = {**SMALL, "steps": 40_000, "steps_per_epoch": 20_000}
    command = [sys.executable, "-c", PROGRAM, "train", "segment", "--output=run"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    command += [f"--images={data / 'images'}", f"--masks={data / 'masks'}"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 0 of 40000" in line:
            break
    time.sleep(1)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == status and "Traceback" not in errors
    assert "convunext: stopped; resume with: convunext train --resume run" in errors
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert 0 < step_of(saved) < 20_000 and not (tmp_path / "run" / "log.csv").exists()


def test_second_process_is_refused_while_the_run_is_in_use(finished, capfd):
    held = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", held, str(finished.output / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert main(["train", "--resume", str(finished.output)]) == 2
        assert "run: is in use: another process trains in it. Wait for it, or stop it." in capfd.readouterr().err
        other.communicate()


def test_empty_masks_are_refused_and_ignored_ones_add_no_loss(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    for path in (folder / "masks").iterdir():
        Image.new("L", (24, 20)).save(path)
    with pytest.raises(ArgumentError, match="`masks` must hold at least two classes.*Are all masks empty"):
        train(settings(folder, tmp_path / "run"), QUIET)
    for number in range(1, 5):
        Image.new("L", (24, 20), 9).save(folder / "masks" / f"{number}.png")
    with pytest.raises(ArgumentError, match="`masks` must hold at least two classes"):
        train(settings(folder, tmp_path / "run", ignore=(9,)), QUIET)
    assert not (tmp_path / "run").exists()
    shutil.copy(data / "masks" / "0.png", folder / "masks" / "0.png")
    config = settings(folder, tmp_path / "run", ignore=(9,), preview_every=0)
    with pytest.raises(FileError, match=r"masks: contain only ignored pixels in all images to validate on: \d.png"):
        train(config, QUIET)
    held_out = SegmentationRecipe(settings(data, tmp_path), QUIET).validation.names[0]
    shutil.copy(data / "masks" / f"{held_out}.png", folder / "masks" / f"{held_out}.png")
    train(config, QUIET)  # of five images, three do not count at all
    assert all(np.isfinite(value) for row in read_log(config.output) for value in row.values())
    json.loads((config.output / "metrics.json").read_text(), parse_constant=pytest.fail)
    task = SegmentationRecipe(config, QUIET)
    model, (images, targets) = task.build(), next(iter(task.batches()))
    assert (
        model.test_on_batch(images, tuple(np.zeros_like(target) for target in targets), return_dict=True)["loss"] == 0
    )
