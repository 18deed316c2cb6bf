"""Each task on each backend: a run is stopped, resumed to where an uninterrupted one ends, applied and measured."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from dl_techniques.cli import main
from dl_techniques.images.files import read_image
from dl_techniques.training import callbacks
from dl_techniques.training.checkpoint import list_checkpoints
from dl_techniques.training.run_folder import read_log

pytestmark = pytest.mark.each_backend

BACKEND = keras.backend.backend()
SMALL = ["--steps=4", "--steps-per-epoch=2", "--patch=16", "--batch-size=2", "--depth=2", "--initial-filters=4"]
TASKS = {
    "segment": ["--masks={}/masks", "--accumulate=2"],
    "restore": ["--targets={}/targets", "--blocks-per-level=1"],
    "denoise": ["--held-out=1", "--final-patch=16", "--blocks-per-level=1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four noisy images of a bright square, their masks, and what they should be."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for index in range(4):
        mask = np.zeros((20, 24), "uint8")
        mask[4:14, 2 + index : 14 + index] = 1
        clean = np.uint8(60 + 100 * mask)
        noisy = np.uint8(clean + rng.integers(-30, 30, clean.shape))
        for name, pixels in (("images", noisy), ("masks", mask), ("targets", clean)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def names_a_faster_backend(output: str) -> bool:
    return "faster: --backend tensorflow" in " ".join(output.split())


@pytest.mark.parametrize("task", TASKS)
def test_stopped_run_resumes_to_the_same_end_and_its_model_is_applied(task, data, tmp_path, monkeypatch, capfd):
    sources = [f"--images={data}/images", TASKS[task][0].format(data)]
    command = ["train", task, *sources, *TASKS[task][1:], *SMALL]
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    assert main([*command, f"--output={plain}"]) == 0
    assert names_a_faster_backend(capfd.readouterr().out) == (BACKEND != "tensorflow")

    save = callbacks.StateCheckpoint.save

    def stop(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StateCheckpoint, "save", stop)
        assert main([*command, f"--output={stopped}"]) == 130
    assert f"convunext train --resume {stopped}" in capfd.readouterr().err
    assert len(read_log(stopped)) == 1
    assert main(["train", "--resume", str(stopped)]) == 0
    told = capfd.readouterr().out
    assert told.splitlines()[-1] == str(stopped / "report.html")
    assert not names_a_faster_backend(told)  # a run stays on the backend that it began on
    one, other = (np.load(list_checkpoints(folder / "checkpoints")[0]) for folder in (plain, stopped))
    assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)
    assert read_log(stopped) == read_log(plain) and len(read_log(plain)) == 2
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (plain, stopped)]
    assert figures[0] == figures[1] and figures[0]["images"] == 1
    assert json.loads((stopped / "config.json").read_text())["versions"]["backend"] == BACKEND

    assert main(["predict", str(stopped), f"{data}/images", "-o", str(tmp_path / "out"), "--engine=keras"]) == 0
    assert [read_image(tmp_path / "out" / f"{index}.png").pixels.shape[:2] for index in range(4)] == [(20, 24)] * 4
    if task == "segment":
        assert main(["evaluate", str(stopped), *sources, "-o", str(tmp_path / "report"), "--engine=keras"]) == 0
        assert json.loads((tmp_path / "report" / "metrics.json").read_text())["images"] == 4
