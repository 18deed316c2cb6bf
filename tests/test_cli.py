"""The command: a demo that leaves a model and a report, clear refusals, nothing left behind when interrupted."""

import contextlib
import io
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from dl_techniques.cli import main
from dl_techniques.datasets.samples import NUCLEI
from dl_techniques.images.files import read_image
from dl_techniques.training import callbacks
from models import image, run

pytestmark = pytest.mark.usefixtures("eager")

TINY_DEMO = ["demo", "--steps", "2", "--batch-size", "2", "--crop", "64", "--filters", "4", "--epochs"]


def command(*arguments: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dl_techniques.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory, eager):
    """Run a very short demo beside one of before; return the folder that it made, its status and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "convunext-demo").mkdir()
    (folder / "convunext-demo" / "report.html").write_text("of before")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        status = main([*TINY_DEMO, "2"])
    return folder / "convunext-demo-2", status, output.getvalue()


def test_demo_prints_scores_and_ends_with_the_report(demo):
    folder, status, output = demo
    assert status == 0
    lines = output.strip().splitlines()
    assert lines[-1] == str((folder / "report.html").resolve())
    assert any(line.startswith("held-out images: Dice 0.") and "IoU 0." in line for line in lines)
    assert [line for line in lines if line.startswith("epoch ")] and "epoch 2/2" in output


def test_demo_overwrites_nothing(demo):
    folder, *_ = demo
    assert sorted(path.name for path in folder.parent.iterdir()) == ["convunext-demo", "convunext-demo-2"]
    assert (folder.parent / "convunext-demo" / "report.html").read_text() == "of before"


def test_demo_model_works_on_images_of_any_size(demo):
    folder, *_ = demo
    import dl_techniques.models.convunext.model  # noqa: F401 - registers the model

    model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    (mask,) = run(model, image(1, 33, 47, 1))
    assert mask.shape == (1, 33, 47, 1) and 0 <= mask.min() and mask.max() <= 1


def test_demo_report_is_self_contained(demo):
    folder, *_ = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 * 6 + 2 * 3  # of six held-out images; three masks
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "mean Dice" in page and "<polyline" in page


def test_demo_is_a_run_whose_folder_predict_takes(demo, tmp_path):
    folder, *_ = demo
    assert main(["predict", str(folder), str(NUCLEI / "image"), "-o", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 24
    assert read_image(folder / "preview.png").pixels.shape == (3 * 264, 4 * 264, 3)


def test_existing_output_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    result = command("demo", "--output", "mine", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "mine: exists already. Name a new folder, or move this one away." in result.stderr + result.stdout


def test_unwritable_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("demo", "--output", "file/inside", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "cannot be written" in result.stderr


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "0"], ["demo", "--crop", "999"]])
def test_wrong_settings_are_refused_with_the_rule(arguments, capfd):
    assert main(arguments) == 2
    output = "".join(capfd.readouterr())
    assert "must be at" in output and "Received" in output


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "many"], ["denoice"], ["demo", "--backend", "numpy"]])
def test_misspelt_commands_are_usage_errors(arguments, capfd):
    assert main(arguments) == 2
    assert "Error" in "".join(capfd.readouterr())


def test_interrupted_demo_can_be_resumed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    log = callbacks.EpochLog.on_epoch_end
    monkeypatch.setattr(
        callbacks.EpochLog, "on_epoch_end", lambda *args: log(*args) or signal.raise_signal(signal.SIGINT)
    )
    assert main([*TINY_DEMO, "5000"]) == 130
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    assert "resume with: convunext train --resume convunext-demo" in errors
    assert list((tmp_path / "convunext-demo" / "checkpoints").iterdir())


def test_losses_of_the_demo_fall(demo):
    folder, *_ = demo
    losses = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)["loss"]
    assert losses[-1] < losses[0]


def test_train_without_a_task_shows_the_tasks(capfd):
    assert main(["train"]) == 0
    shown = capfd.readouterr().out
    assert all(task in shown for task in ("denoise", "restore", "segment", "--resume"))
