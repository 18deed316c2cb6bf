"""Folders of runs, plans and cards that were damaged or edited: refused by name, or taken for what they say."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from dl_techniques.cli import main
from dl_techniques.errors import FileError
from dl_techniques.training.checkpoint import list_checkpoints, load_checkpoint
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.run_folder import check_run, log_digest, read_log, stored_config, stored_versions, trim_log

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz  # noqa: E402
import fuzz_plans  # noqa: E402
import fuzz_runs  # noqa: E402


@pytest.mark.parametrize("kind", [kind for kind in fuzz_runs.KINDS if kind != "resume"])
def test_no_damage_to_a_run_goes_unnoticed_or_ends_in_a_traceback(kind):
    outcomes = [fuzz.attempt("runs", kind, seed) for seed in range(60)]
    assert not [outcome for outcome in outcomes if outcome.state in fuzz.DEFECTS]
    assert sum(outcome.state == "refused" for outcome in outcomes) > 20 or kind == "checkpoint"


@pytest.mark.parametrize("task", fuzz_plans.KINDS)
def test_a_plan_is_taken_as_it_stands_or_refused(task):
    outcomes = [fuzz.attempt("plans", task, seed) for seed in range(25)]
    assert not [outcome for outcome in outcomes if outcome.state in fuzz.DEFECTS]


@pytest.fixture
def run(tmp_path):
    fuzz_runs.write_run(tmp_path / "run")
    return tmp_path / "run"


def edit(run: Path, before: str, after: str, name: str = "config.json") -> None:
    text = (run / name).read_text()
    assert before in text
    (run / name).write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    "before, after, reason",
    [
        ('"patch": 16', '"patch": null', "holds patch = None; it must be a whole number"),
        ('"steps": 4', '"steps": 1' + 26 * "0", "holds a setting that cannot be: `steps` must be at most 999999999"),
        ('"seed": 0', '"seed": -1', "holds a setting that cannot be: `seed` must be at least 0"),
        ('"images": ', '"images": 5, "x": ', "holds images = 5; it must be text"),
        ('"val_images": null', '"val_images": ["a"]', r"holds val_images = \['a'\]; it must be text"),
        ('"learning_rate": 0.002', '"learning_rate": 0.003', "was changed since the run started"),
        ('"task": "denoise"', '"task": ["denoise"]', r"holds task = \['denoise'\]; it must be text"),
        ('"versions": {', '"versions": [1], "y": {', r"holds versions = \[1\]; it must be a table"),
        ('"keras": "3.15.1"', '"keras": 3', r"holds versions = \{.*; it must be a table"),
        ('"steps": 4', '"steps": ' + 10**4 * "[" + 10**4 * "]", "its values lie more than 64 deep"),
    ],
    ids=lambda text: text[:30],
)
def test_edited_settings_are_refused_by_file_and_field(before, after, reason, run):
    edit(run, before, after)
    with pytest.raises(FileError, match=rf"config\.json: (cannot be read: )?{reason}.*Restore it from a backup"):
        stored_config(run, DenoisingConfig)


def test_settings_that_may_change_may_and_the_run_still_knows_them(run):
    edit(run, '"steps": 4', '"steps": 8')
    edit(run, '"cooldown": 0.3', '"cooldown": 0.5')
    config = stored_config(run, DenoisingConfig)
    assert (config.steps, config.cooldown, config.output) == (8, 0.5, run)
    check_run(run, config, resume=True)
    assert stored_versions(run) == {"backend": "tensorflow", "keras": "3.15.1"}


def test_a_run_of_a_version_without_digests_is_taken(run):
    stored = json.loads((run / "config.json").read_text())
    del stored["sha256"]
    (run / "config.json").write_text(json.dumps(stored))
    assert stored_config(run, DenoisingConfig).patch == 16


def test_a_run_on_a_backend_that_is_none_is_refused_before_keras_is_asked_for_it(run, monkeypatch, capsys):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    edit(run, '"backend": "tensorflow"', '"backend": "evil"')
    assert main(["train", "--resume", str(run)]) == 2
    assert "config.json: names the backend 'evil'" in capsys.readouterr().err


LOGS = {
    "hello world": "does not count its epochs",
    "": "it has no header",
    "epoch,loss\n0,x\n": "holds what is no number",
    "epoch,loss\n0\n": "line 2 has 1 cells, not 2",
    "epoch,loss\n0\0,1\n": "holds what is no number",
    "epoch,loss\n1,0.5\n": "does not count its epochs from 0",
    "loss\n1\n": "does not count its epochs from 0",
}


@pytest.mark.parametrize("content", LOGS)
def test_a_damaged_log_is_refused_before_the_data_are_read(content, run):
    (run / "log.csv").write_text(content)
    with pytest.raises(FileError, match=rf"log\.csv: .*({LOGS[content]})"):
        check_run(run, stored_config(run, DenoisingConfig), resume=True)


def test_a_log_that_says_something_else_than_at_the_checkpoint_is_refused(run):
    digest = log_digest(run)
    trim_log(run, 2, digest)
    assert len(read_log(run)) == 2
    edit(run, "20.25", "29.25", "log.csv")
    with pytest.raises(FileError, match=r"log\.csv: was changed since the checkpoint"):
        trim_log(run, 2, digest)
    (run / "log.csv").unlink()
    with pytest.raises(FileError, match=r"log\.csv: holds 0 epochs; the checkpoint is of epoch 2"):
        trim_log(run, 2, digest)


@pytest.mark.parametrize("content", [b"no archive", b"\x80\x04\x95object", b"PK\x03\x04", b"\x93NUMPY\x01\x00v"])
def test_a_checkpoint_that_is_none_counts_as_damaged_whatever_its_name_says(content, run):
    newest, older = list_checkpoints(run / "checkpoints")
    newest.unlink()
    (newest.parent / f"step-000000004-{hashlib.sha256(content).hexdigest()[:16]}.npz").write_bytes(content)
    step, state, torn = load_checkpoint(run / "checkpoints")
    assert step == 2 and len(torn) == 1 and np.array_equal(state["optimizer/0/iteration"], 4)


def test_a_plan_of_another_task_is_refused(tmp_path, capsys):
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(fuzz_plans.plan_of("denoise")))
    assert main(["train", "restore", "--plan", str(tmp_path / "plan.toml"), "-o", str(tmp_path / "run")]) == 2
    assert "plan.toml: is a plan of task 'denoise', not of restore" in capsys.readouterr().err
