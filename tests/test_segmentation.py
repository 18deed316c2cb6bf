"""Training of segmenters on a user's folder: what is wrong is named first, runs resume, the result explains itself."""

import json
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.batches import random_crop
from dl_techniques.datasets.inspection import Inspection, PairFacts
from dl_techniques.datasets.lazy import LazyDataset, MemoryBudget
from dl_techniques.datasets.pairs import Pair
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError
from dl_techniques.images.files import read_image
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.tasks.base import Sample
from dl_techniques.tasks.segmentation.classes import IGNORED, Classes
from dl_techniques.tasks.segmentation.evaluation import evaluate
from dl_techniques.training import auto_settings
from dl_techniques.training.auto_settings import choose_augmentation, resolve_settings
from dl_techniques.training.recipes.segmentation.batches import segmentation_batches
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.run_folder import read_log, stored_config
from dl_techniques.training.trainer import train

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {
    "steps": 16, "steps_per_epoch": 8, "patch": 16, "batch_size": 2, "accumulate": 2, "depth": 2, "initial_filters": 4,
    "preview_every": 2,
}  # fmt: skip
QUIET = Console(quiet=True)


def paint(folder, count=6, size=(20, 24), values=(0, 4, 9), ignored=11):
    """Write noisy images of bright stripes, and masks with a value per stripe and a corner that does not count."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        stripes = np.resize(np.repeat(np.roll(values, index), 8), size[1])
        mask = np.broadcast_to(stripes, size).astype("uint8").copy()
        image = np.uint8(20 * mask + rng.integers(0, 20, size))
        mask[:3, :3] = ignored
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}_mask.png")
    return folder


def settings(folder, output, **changes) -> SegmentationConfig:
    sources = {"images": str(folder / "images"), "masks": str(folder / "masks"), "ignore": (11,)}
    return SegmentationConfig(**{**sources, "output": output, **SMALL, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A short run of three classes, from its first step to its last."""
    config = settings(data, tmp_path_factory.mktemp("runs") / "run", classes=("sky", "road", "car"))
    return config, train(config, QUIET)


def test_run_leaves_a_model_that_explains_itself(finished):
    config, result = finished
    log = read_log(config.output)
    assert [row["epoch"] for row in log] == [0, 1] and log[1]["loss"] < log[0]["loss"]
    card = read_card(config.output / "model.keras").as_dict()
    assert [entry["name"] for entry in card["classes"]] == ["sky", "road", "car"]
    assert [entry["mask_value"] for entry in card["classes"]] == [0, 4, 9] and card["ignored_mask_values"] == [11]
    assert card["metrics"] == json.loads((config.output / "metrics.json").read_text())
    assert len(card["metrics"]["classes"]) == 3 and len(card["data_sha256"]) == 64
    best = max(row["val_dice"] for row in log)
    assert result.evaluation.confusion.mean_dice == pytest.approx(best, abs=1e-3)
    sides = (config.output / "split.csv").read_text().split()
    assert len(sides) == 7 and sum(line.startswith("validation") for line in sides) == 1
    (preview,) = (config.output / "previews").iterdir()  # of the second epoch
    assert preview.name.startswith("epoch-0002-") and read_image(preview).pixels.shape == (28, 4 * 32, 3)
    written = tomllib.loads((config.output / "plan.toml").read_text())
    assert written["settings"]["mask_kind"] == "classes" and written["settings"]["symmetries"] == "all"
    assert len(list((config.output / "tensorboard").rglob("events.*"))) == 2


def test_model_gives_probabilities_that_score_as_reported(finished, data):
    config, result = finished
    model = keras.saving.load_model(config.output / "model.keras", compile=False, safe_mode=True)
    assert model.final_activation is keras.activations.softmax and not model.enable_deep_supervision
    samples = SegmentationRecipe(config, QUIET).validation
    again = evaluate(keras_function(model), samples, Classes((0, 4, 9), ("sky", "road", "car"), (11,)))
    assert np.array_equal(again.confusion.counts, result.evaluation.confusion.counts)
    assert again.confusion.counts.sum() == 20 * 24 - 9  # of one image, without the corner


def test_report_shows_classes_curves_and_pictures(finished):
    page = finished[1].report.read_text()
    assert page.count("<figure>") == 4 + 2 * 3 and page.count("<polyline") == 3 and "<th>road</th>" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_two_values_train_one_output_until_nothing_gets_better(tmp_path):
    folder = paint(tmp_path, values=(0, 255))
    still = {"learning_rate": 1e-30, "patience": 1, "steps": 40, "preview_every": 0, "convnext_version": "v1"}
    config = settings(folder, tmp_path / "run", **still)
    result = train(config, QUIET)
    assert [row["epoch"] for row in read_log(config.output)] == [0, 1]
    again = train(config, QUIET, resume=True)
    assert len(read_log(config.output)) == 2 and again.evaluation.scores == result.evaluation.scores
    assert not (config.output / "previews").exists()
    model = keras.saving.load_model(config.output / "model.keras", compile=False, safe_mode=True)
    assert model.output_channels == 1 and result.evaluation.confusion.counts.shape == (2, 2)


def test_evaluate_measures_any_labelled_folder(finished, data, tmp_path, capfd):
    config, result = finished
    flags = [f"--images={data / 'images'}", f"--masks={data / 'masks'}", "-o"]
    model = str(config.output / "model.keras")
    assert main(["evaluate", model, *flags, str(tmp_path / "all")]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "all" / "report.html")
    measured = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert measured["images"] == 6 and (tmp_path / "all" / "metrics.csv").read_text().startswith("class,dice,iou\n")
    (held_out,) = SegmentationRecipe(config, QUIET).validation.names
    flags = [f"--images={data / 'images' / held_out}.png", f"--masks={data / 'masks' / held_out}_mask.png", "-o"]
    assert main(["evaluate", model, *flags, str(tmp_path / "one")]) == 0
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert one["mean_dice"] == pytest.approx(result.evaluation.confusion.mean_dice)

    assert main(["evaluate", model, *flags, str(tmp_path / "one")]) == 2
    assert "one: exists already" in capfd.readouterr().err
    bare = tmp_path / "bare.keras"
    keras.saving.load_model(model).save(bare)
    assert main(["evaluate", str(bare), *flags, str(tmp_path / "two"), "--engine", "keras"]) == 2
    assert "bare.keras: has no card with a task" in capfd.readouterr().err
    spoil_kind(paint(tmp_path / "rgb", count=2))
    (tmp_path / "rgb" / "images" / "0.png").unlink()
    (tmp_path / "rgb" / "masks" / "0_mask.png").unlink()
    folder = tmp_path / "rgb"
    flags = [f"--images={folder / 'images'}", f"--masks={folder / 'masks'}", "-o", str(tmp_path / "two")]
    assert main(["evaluate", model, *flags]) == 2
    assert "have 3 channels; model.keras takes 1" in capfd.readouterr().err
    assert not (tmp_path / "two").exists()


# === plans ===


def test_batches_have_about_as_many_pixels_whatever_the_crops(data, tmp_path):
    facts = Inspection((PairFacts(Pair(data, data)),), ())
    for patch, batch in ((20, 328), (256, 2), (512, 1)):
        assert resolve_settings(settings(data, tmp_path, patch=patch, batch_size=None), facts).batch_size == batch


def test_a_plan_is_chosen_measured_and_followed(data, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(auto_settings, "PIXELS_IN_A_STEP", 4000)  # or each step would take a second
    path, output = tmp_path / "plan.toml", tmp_path / "run"
    sources = [f"--images={data / 'images'}", f"--masks={data / 'masks'}", "--ignore=11"]
    small = ["--steps=4", "--steps-per-epoch=2", "--initial-filters=4", "--depth=2", "--convnext-version=v1"]
    assert main(["plan", "segment", *sources, *small, f"--output={path}"]) == 0
    captured = capfd.readouterr().out
    assert "5 to train on, 1 to validate on" in captured and "s a step" in captured
    plan = tomllib.loads(path.read_text())
    assert plan["settings"]["patch"] == 20 and plan["settings"]["batch_size"] == 10
    assert plan["measured"]["step_seconds"] > 0 and 0 <= plan["measured"]["waiting"] <= 1

    assert main(["train", "segment", f"--plan={path}", "--batch-size=1", f"--output={output}"]) == 0
    followed = stored_config(output, SegmentationConfig)
    assert (followed.patch, followed.batch_size, followed.classes) == (20, 1, ("0", "4", "9"))

    assert main(["plan", "segment", *sources, f"--output={path}"]) == 2
    assert "plan.toml: exists already" in capfd.readouterr().err
    assert main(["plan", "segment", *sources, f"--output={tmp_path / 'plan'}"]) == 2
    assert "must be a file that ends in .toml" in capfd.readouterr().err
    path.write_text(path.read_text().replace("patience", "pateince"))
    assert main(["train", "segment", f"--plan={path}", f"--output={tmp_path / 'other'}"]) == 2
    assert "pateince" in capfd.readouterr().err
    path.write_text("steps = 4")
    assert main(["train", "segment", f"--plan={path}", f"--output={tmp_path / 'other'}"]) == 2
    assert "plan.toml: is not a plan: it has no table [settings]" in capfd.readouterr().err


def test_samples_stay_in_memory_while_there_is_room(tmp_path):
    read: list[str] = []

    def sample(pair: Pair) -> Sample:
        read.append(pair.name)
        return Sample(pair.name, np.zeros((5, 5, 1), "float32"), np.zeros((5, 5), "uint8"))

    samples = LazyDataset([Pair(Path(name), Path(name)) for name in "abc"], sample, budget=MemoryBudget(2 * 125 + 124))
    assert [each.name for _ in range(2) for each in samples] == ["a", "b", "c"] * 2
    assert read == ["a", "b", "c", "c"] and samples.names == ["a", "b", "c"] and samples[1:][0] is samples[1]


# === batches ===


def samples_of_one(value=7) -> list[Sample]:
    image = np.random.default_rng(0).normal(size=(10, 40, 1)).astype("float32")
    return [Sample("a", image, np.full((10, 40), value, "uint8"))]


def test_batches_depend_on_seed_and_position_alone():
    classes = Classes((0, 1, 2), ("a", "b", "c"))
    config = SegmentationConfig(images="", output=Path(), **{**SMALL, "steps": 4, "steps_per_epoch": 4})
    common = (classes, Augmentation(), config)
    batches = list(segmentation_batches(samples_of_one(2), *common))
    (images, targets), later = batches[2], next(segmentation_batches(samples_of_one(2), *common, done=2))
    assert np.array_equal(images, later[0]) and not np.array_equal(images, batches[1][0])
    assert images.shape == (2, 16, 16, 1) and [target.shape for target in targets] == [(2, 16, 16, 4), (2, 8, 8, 4)]
    assert all((target == [0, 0, 1, 1]).all() for target in targets)
    _, (ignored, *_) = next(segmentation_batches(samples_of_one(IGNORED), *common))
    assert not ignored.any()


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (16, 16), (40, 17)])
def test_crops_of_any_image_have_the_size_asked_for(size, rng):
    image = rng.normal(size=(*size, 2)).astype("float32")
    mask = np.uint8(image[..., 0] > 0)
    crop, labels = random_crop(image, mask, 16, rng)
    assert crop.shape == (16, 16, 2) and np.array_equal(labels, crop[..., 0] > 0)


def test_photographs_are_not_flipped_vertically(data, tmp_path):
    grey, colour = (Inspection((PairFacts(Pair(data, data), channels=channels),), ()) for channels in (1, 3))
    open_config = settings(data, tmp_path)
    assert choose_augmentation(resolve_settings(open_config, grey)).vertical_flip > 0
    assert choose_augmentation(resolve_settings(open_config, colour)).vertical_flip == 0
    assert choose_augmentation(resolve_settings(settings(data, tmp_path, symmetries="all"), colour)).vertical_flip > 0


# === what is wrong with a data set ===


def spoil_size(folder):
    Image.new("L", (5, 7)).save(folder / "masks" / "2_mask.png")


def spoil_image(folder):
    (folder / "images" / "3.png").write_bytes(b"\x89PNG")


def spoil_count(folder):
    (folder / "masks" / "4_mask.png").unlink()


def spoil_kind(folder):
    Image.new("RGB", (24, 20)).save(folder / "images" / "1.png")


def spoil_twin(folder):
    (folder / "val").mkdir()
    for name in ("images/0.png", "masks/0_mask.png"):
        (folder / "val" / name.split("/")[1]).write_bytes((folder / name).read_bytes())


def leave_one(folder: Path) -> None:
    for path in [*(folder / "images").iterdir(), *(folder / "masks").iterdir()]:
        if not path.name.startswith("0"):
            path.unlink()


@pytest.mark.parametrize(
    "spoil, change, message",
    [
        (spoil_size, {}, "1 of 6 pairs cannot be used:\n.*2_mask.png: is 5x7 pixels, its image 2.png 24x20"),
        (spoil_image, {}, "3.png: is not an image"),
        (spoil_count, {}, "masks: has no target for 4.png"),
        (spoil_kind, {}, "1.png: has 3 channels where most have 1"),
        (lambda folder: None, {"classes": ("a", "b")}, "`classes` must name 3 classes"),
        (lambda folder: None, {"group_regex": "()"}, "must give at least two groups"),
        (leave_one, {}, "`images` must be at least two images.*0.png.*--val-images"),
        (spoil_twin, {"val_images": "val/0.png", "val_masks": "val/0_mask.png"}, "0.png: is the same image as"),
    ],
)
def test_wrong_data_is_named_before_anything_is_written(spoil, change, message, tmp_path):
    folder = paint(tmp_path / "data")
    spoil(folder)
    change = {name: str(folder / value) if name.startswith("val_") else value for name, value in change.items()}
    with pytest.raises(ConvUNextError, match=message):
        train(settings(folder, tmp_path / "run", **change), QUIET)
    assert not (tmp_path / "run").exists()


def test_one_small_image_does_not_shrink_the_crops(tmp_path):
    folder = paint(tmp_path / "data")
    for name in ("images/5.png", "masks/5_mask.png"):
        Image.fromarray(np.zeros((1, 1), "uint8")).save(folder / name)
    most = {"images": str(folder / "images/[0-4].png"), "masks": str(folder / "masks/[0-4]*.png")}
    small = {"val_images": str(folder / "images/5.png"), "val_masks": str(folder / "masks/5_mask.png")}
    for name, sources in (("trained on", {}), ("validated on", {**most, **small})):
        config = settings(folder, tmp_path / name, patch=None, steps=2, steps_per_epoch=2, **sources)
        assert SegmentationRecipe(config, QUIET).config.patch == 20
        train(config, QUIET)
        json.loads((config.output / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_an_image_that_vanishes_in_training_is_named(tmp_path):
    folder = paint(tmp_path, values=(0, 255))

    def load(config, console):
        task = SegmentationRecipe(config, console)
        task.training.pairs[0].image.unlink()
        return task

    config = settings(folder, tmp_path / "run", cache_gb=0.0, steps_per_epoch=16, convnext_version="v1")
    with pytest.raises(FileError, match=r"images/\d.png: does not exist"):
        train(config, QUIET, create_recipe=load)
    assert not list((config.output / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 3}, "`steps` must be a multiple of steps_per_epoch=8"),
        ({"val_fraction": 1.0}, "`val_fraction` must be above 0 and below 1"),
        ({"val_masks": "x"}, "`val_masks` must come with val_images"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(change, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        settings(tmp_path, tmp_path / "run", **change)


def test_a_run_is_never_begun_over_another(finished):
    with pytest.raises(FileError, match="exists already"):
        train(finished[0], QUIET)
