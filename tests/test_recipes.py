"""Settings do what their names say, from the command line to the files of the run."""

import json
import tomllib

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.datasets.augmentation import STRENGTHS
from dl_techniques.losses import SegmentationLoss
from dl_techniques.training import callbacks
from dl_techniques.training.checkpoint import list_checkpoints
from dl_techniques.training.plan import write_plan
from dl_techniques.training.recipes.restoration.recipe import RestorationRecipe
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.run_folder import read_log
from dl_techniques.training.supervision import supervision_weights

SMALL = {"steps": 4, "steps_per_epoch": 2, "patch": 16, "batch_size": 2, "depth": 2, "initial_filters": 4}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five noisy images of a bright square, what they should be, and masks of three classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("images", "targets", "masks"):
        (folder / name).mkdir()
    for index in range(5):
        mask = np.zeros((20, 24), "uint8")
        mask[4:14, 2 + index : 14 + index] = 1
        mask[15:, :] = 2
        clean = np.uint8(60 + 50 * mask)
        noisy = np.uint8(clean + rng.integers(-30, 30, clean.shape))
        for name, pixels in (("images", noisy), ("targets", clean), ("masks", mask)):
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def segmentation(data, **changes) -> SegmentationRecipe:
    sources = {"images": str(data / "images"), "masks": str(data / "masks"), "output": data / "none"}
    return SegmentationRecipe(SegmentationConfig(**{**sources, **SMALL, **changes}), QUIET)


def restoration(data, **changes) -> RestorationRecipe:
    sources = {"images": str(data / "images"), "targets": str(data / "targets"), "output": data / "none"}
    return RestorationRecipe(RestorationConfig(**{**sources, **SMALL, **changes}), QUIET)


def predicted(model, images) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False)).astype("float64")


# === losses and augmentation ===


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dice_ce", (1, 1, 0, 0.5, 0.5)),
        ("dice", (1, 0, 0, 0.5, 0.5)),
        ("cross_entropy", (0, 1, 0, 0.5, 0.5)),
        ("focal", (0, 1, 2, 0.5, 0.5)),
        ("tversky", (1, 0, 0, 0.3, 0.7)),
    ],
)
def test_segmentation_losses_are_what_their_names_say(name, expected, data):
    losses = segmentation(data, loss=name).build().loss
    assert len(losses) == 2
    for loss in losses:
        assert (loss.dice, loss.cross_entropy, loss.gamma, loss.alpha, loss.beta) == expected


@pytest.mark.each_backend
@pytest.mark.parametrize(
    "name, formula",
    [
        ("charbonnier", lambda error: np.sqrt(error**2 + 1e-6)),
        ("mse", np.square),
        ("mae", np.abs),
    ],
)
def test_restoration_losses_are_their_formulas(name, formula, data):
    task = restoration(data, loss=name)
    images, targets = next(task.batches())
    model = task.build()
    expected = formula(predicted(model, images) - targets.astype("float64")).mean()
    assert model.test_on_batch(images, targets, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-4)


def test_annealed_weights_end_on_the_finest_output_alone(data):
    assert supervision_weights(3, 0.0) == supervision_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert supervision_weights(3, 0.6) == pytest.approx([1 / 1.3, 0.2 / 1.3, 0.1 / 1.3])
    assert supervision_weights(3, 1.0) == [1, 0, 0]
    task = segmentation(data, anneal_supervision=True)
    weights = [[float(weight[0]) for weight in each] for _, _, each in task.batches()]
    assert np.allclose(weights, [[2 / 3, 1 / 3], [3 / 4, 1 / 4], [6 / 7, 1 / 7], [1, 0]])
    later = next(task.batches(done=2))[2]
    assert [weight.shape for weight in later] == [(2,), (2,)] and float(later[1][0]) == pytest.approx(1 / 7)


@pytest.mark.each_backend
def test_annealed_loss_is_the_weighted_sum_of_the_outputs_losses(data):
    task = segmentation(data, anneal_supervision=True, symmetries="all")
    model = task.build()
    for images, targets, weights in task.batches():
        loss = SegmentationLoss("softmax")
        levels = [
            float(keras.ops.convert_to_numpy(loss(target, output)))
            for target, output in zip(targets, model(images, training=False), strict=True)
        ]
        expected = sum(float(weight[0]) * level for weight, level in zip(weights, levels, strict=True))
        logs = model.test_on_batch(images, targets, weights, return_dict=True)
        assert logs["loss"] == pytest.approx(expected, rel=1e-4)
        model.reset_metrics()


@pytest.mark.slow
def test_annealed_run_that_was_stopped_ends_where_an_uninterrupted_one_does(data, tmp_path, monkeypatch):
    whole, stopped, plain = (tmp_path / name for name in ("whole", "stopped", "plain"))
    command = ["train", "segment", f"--images={data / 'images'}", f"--masks={data / 'masks'}", *FLAGS]
    assert main([*command, "--anneal-supervision", f"--output={whole}"]) == 0
    save = callbacks.StateCheckpoint.save

    def die(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StateCheckpoint, "save", die)
        assert main([*command, "--anneal-supervision", f"--output={stopped}"]) == 130
    assert main(["train", "--resume", str(stopped)]) == 0
    one, other = (np.load(list_checkpoints(folder / "checkpoints")[0]) for folder in (whole, stopped))
    assert one.files == other.files and all(np.array_equal(one[name], other[name]) for name in one.files)
    assert (
        "weights of coarser levels falling to zero"
        in tomllib.loads((whole / "plan.toml").read_text())["chosen"]["loss"]
    )
    assert main([*command, f"--output={plain}"]) == 0
    assert read_log(plain)[0]["loss"] != read_log(whole)[0]["loss"] and read_log(whole) == read_log(stopped)


def test_crops_are_changed_as_much_as_asked_for(data):
    """Without augmentation every crop is a window of an image; `light` leaves images nearer to themselves."""
    task = restoration(data, augment="none")
    originals = [sample.image for sample in task.training]
    windows = {
        image[top : top + 16, left : left + 16].tobytes()
        for image in originals
        for top in range(5)
        for left in range(9)
    }

    def inside(task) -> list[bool]:
        return [crop.tobytes() in windows for images, _ in task.batches() for crop in images]

    assert all(inside(task)) and not all(inside(restoration(data, augment="light")))
    rng, image = np.random.default_rng(1), np.random.default_rng(2).normal(size=(16, 16, 1)).astype("float32")
    mask = np.zeros((16, 16, 1), "uint8")
    assert STRENGTHS["none"](image, mask, rng)[0] is image
    changed = {}
    for name, strength in STRENGTHS.items():
        draws = [strength(image, mask, np.random.default_rng(seed))[0] for seed in range(200)]
        changed[name] = np.mean([not np.array_equal(np.sort(draw, None), np.sort(image, None)) for draw in draws])
    assert changed["none"] == 0 < changed["light"] < 0.7 * changed["default"]  # values, wherever they went


def test_augmentation_is_told_as_it_is(data):
    told = segmentation(data).choices()["augmentation"]
    assert told == "flips, rotations, scaling, elastic deformation, brightness, blur, noise"
    assert segmentation(data, augment="light").choices()["augmentation"] == "flips, rotations, scaling, brightness"
    assert segmentation(data, augment="none").choices()["augmentation"] == "none"
    assert restoration(data, symmetries="mirror").choices()["augmentation"] == "flips"


def test_plan_lists_how_often_the_classes_are(data, tmp_path):
    task = segmentation(data, classes=("sky", "square", "ground"))
    write_plan(tmp_path / "plan.toml", task)
    found = tomllib.loads((tmp_path / "plan.toml").read_text())["found"]["classes"]
    assert [row["name"] for row in found] == ["sky", "square", "ground"] and {row["images"] for row in found} == {5}
    assert [row["share"] for row in found] == pytest.approx([1 - 0.25 - 0.25, 0.25, 0.25])  # of 20x24: 10x12, 5x24


@pytest.mark.slow
def test_loss_and_augmentation_go_from_flag_to_plan_to_run_to_report(data, tmp_path, capfd):
    sources = [f"--images={data / 'images'}", f"--targets={data / 'targets'}"]
    plan, output = tmp_path / "plan.toml", tmp_path / "run"
    assert main(["plan", "restore", *sources, *FLAGS, "--loss=mae", "--augment=none", f"--output={plan}"]) == 0
    written = tomllib.loads(plan.read_text())
    assert written["task"] == "restore" and written["settings"]["loss"] == "mae"
    assert written["chosen"]["loss"].startswith("mean absolute error") and written["chosen"]["augmentation"] == "none"
    assert written["measured"]["step_seconds"] > 0
    assert main(["train", "restore", f"--plan={plan}", f"--output={output}"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(output / "report.html")
    config = json.loads((output / "config.json").read_text())
    assert (config["loss"], config["augment"]) == ("mae", "none")
    assert "loss=mae" in (output / "report.html").read_text()
    assert main(["train", "restore", *sources, "--loss=dice", f"--output={tmp_path / 'other'}"]) == 2
    assert "charbonnier" in "".join(capfd.readouterr())
