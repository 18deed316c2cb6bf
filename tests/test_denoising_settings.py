"""Denoisers take lists, keep films together, add up gradients and end early, as the other trainings do."""

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.datasets.pairs import find_pairs
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.training.recipes.denoising.recipe import DenoisingRecipe
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.run_folder import read_log
from dl_techniques.training.trainer import train

pytestmark = pytest.mark.usefixtures("eager")

QUIET = Console(quiet=True)
SMALL = {
    "patch": 12, "final_patch": 12, "batch_size": 2, "steps": 8, "steps_per_epoch": 2, "held_out": 2,
    "depth": 2, "initial_filters": 4, "blocks_per_level": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three films of two frames."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for film in "abc":
        for frame in range(2):
            Image.fromarray(rng.integers(0, 255, (24, 20), "uint8")).save(folder / f"{film}_{frame}.png")
    return folder


def settings(films, output, **changes) -> DenoisingConfig:
    return DenoisingConfig(**{"images": str(films), "output": output, **SMALL, **changes})


def test_frames_of_a_film_stay_on_one_side(films, tmp_path):
    task = DenoisingRecipe(settings(films, tmp_path, group_regex="^([a-z])_"), QUIET)
    training, validation = ({name[0] for name in side.names} for side in (task.training, task.validation))
    assert len(validation) == 1 and len(training) == 2 and not training & validation
    with pytest.raises(ArgumentError, match="`group_regex` must match every name"):
        DenoisingRecipe(settings(films, tmp_path, group_regex="^x"), QUIET)


def test_images_may_be_listed_in_a_file(films, tmp_path):
    listed = ["image", *(f"{films / name}_0.png" for name in "abc")]
    (tmp_path / "list.csv").write_text("\n".join(listed) + "\n")
    task = DenoisingRecipe(settings(tmp_path / "list.csv", tmp_path), QUIET)
    assert (task.training.names, task.validation.names) == (["c_0"], ["a_0", "b_0"])
    (tmp_path / "list.csv").write_text("\n".join([*listed, "nowhere.png"]) + "\n")
    with pytest.raises(FileError, match="list.csv: names files that do not exist: nowhere.png. Correct"):
        DenoisingRecipe(settings(tmp_path / "list.csv", tmp_path), QUIET)
    (tmp_path / "list.csv").write_text("image,target\na.png,\n")
    with pytest.raises(FileError, match="names no file in the rows 2"):
        find_pairs(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("picture\na.png\n")
    with pytest.raises(FileError, match="has no rows with columns 'image'. Add"):
        DenoisingRecipe(settings(tmp_path / "list.csv", tmp_path), QUIET)


@pytest.mark.each_backend
def test_gradients_of_several_steps_change_the_weights_once(films, tmp_path):
    task = DenoisingRecipe(settings(films, tmp_path, accumulate=2), QUIET)
    model = task.build()
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.trainable_weights]
    changed = []
    for batch, _ in zip(task.batches(), range(2), strict=False):
        model.train_on_batch(*batch)
        now = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
        changed.append(any(not np.array_equal(a, b) for a, b in zip(now, before, strict=True)))
    assert changed == [False, True]
    with pytest.raises(ArgumentError, match="`steps` must be a multiple of accumulate=3"):
        settings(films, tmp_path, accumulate=3)


@pytest.mark.slow
@pytest.mark.parametrize("noisy_only", [False, True])
def test_run_ends_when_nothing_gets_better(noisy_only, films, tmp_path):
    config = settings(films, tmp_path / "run", learning_rate=1e-30, patience=1, noisy_only=noisy_only)
    train(config, QUIET)
    assert [row["epoch"] for row in read_log(config.output)] == [0, 1]
    assert (config.output / "report.html").exists()


@pytest.mark.slow
def test_flags_reach_the_command_line(films, tmp_path, capfd):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "steps": 4}.items()]
    flags = ["--accumulate=2", "--patience=3", "--group-regex=^([a-z])_", f"--output={tmp_path / 'run'}"]
    assert main(["train", "denoise", f"--images={films}", *small, *flags]) == 0
    assert main(["train", "denoise", f"--images={films}", "--patience=-1", "-o", str(tmp_path / "other")]) == 2
    assert "patience" in capfd.readouterr().err
