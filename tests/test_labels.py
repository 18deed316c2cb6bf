"""Labels that may overlap: a channel or a page of the mask for each, a sigmoid for each, a figure for each."""

import json

import keras
import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.inspection import inspect_pairs
from dl_techniques.datasets.pairs import find_pairs
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.predictor import Predictor
from dl_techniques.metrics import LabelConfusion
from dl_techniques.page.applying import apply_model
from dl_techniques.tasks.segmentation.classes import COLOURS, IGNORED, Classes, choose_labels, overlay, paint
from dl_techniques.tasks.segmentation.inspection import mask_counts
from dl_techniques.tasks.segmentation.masks import read_labels, read_mask, write_masks
from dl_techniques.tasks.segmentation.readers import LabelReader, MaskReader
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from models import saved

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {"steps": 2, "steps_per_epoch": 2, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4}
NAMES = ("cell", "nucleus", "wall")
LABELS = Classes((0, 1, 2), NAMES, (7,), labels=True)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
FLAGS += ["--mask-kind=labels", "--ignore=7", "--convnext-version=v1", *(f"--classes={name}" for name in NAMES)]
QUIET = Console(quiet=True)


def paint_cells(folder, count=4, size=(20, 24)):
    """Write images of cells with nuclei inside them, labels as pages of 0 and 255, a corner that does not count."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        masks = np.zeros((3, *size), "uint8")
        masks[0, 2:16, 2 + index : 18 + index] = 255
        masks[1, 5:10, 6 + index : 12 + index] = 255
        masks[2, 2:4, 2 + index : 18 + index] = 255
        image = np.uint8(masks.astype(int).sum(axis=0) // 4 + rng.integers(0, 20, size))
        masks[:, :3, :3] = 7
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        tifffile.imwrite(folder / "masks" / f"{index}.tif", masks, photometric="minisblack")
    return folder


def sources(folder) -> dict[str, str]:
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


@pytest.mark.slow
def test_labels_are_trained_measured_and_predicted_as_they_were_given(tmp_path, capfd):
    folder, run = paint_cells(tmp_path / "data"), tmp_path / "run"
    flags = [f"--{name}={path}" for name, path in sources(folder).items()]
    assert main(["train", "segment", *flags, *FLAGS, "-o", str(run)]) == 0
    card = read_card(run / "model.keras").as_dict()
    assert Classes.from_card(card, "") == LABELS and card["labels"] is True and "sigmoid" in card["output"]
    assert [row["class"] for row in card["metrics"]["classes"]] == list(NAMES)
    page = (run / "report.html").read_text()
    assert "<h2>Labels</h2>" in page and "Recall and precision" in page and page.count("<figure>") == 4 + 2 * 3
    model = keras.saving.load_model(run / "model.keras", compile=False, safe_mode=True)
    assert model.output_channels == 3 and model.final_activation is keras.activations.sigmoid

    out, images = tmp_path / "out", str(folder / "images")
    assert main(["predict", str(run), images, "-o", str(out), "--probabilities", "--overlay"]) == 0
    probabilities = tifffile.imread(out / "1-probabilities.tif")
    masks = tifffile.imread(out / "1.tif")
    assert probabilities.shape == (20, 24, 3) and masks.shape == (3, 20, 24) and masks.dtype == np.uint8
    assert np.array_equal(np.moveaxis(masks, 0, 2), probabilities > 0.5)
    assert read_image(out / "1-overlay.png").pixels.shape == (20, 24, 3)

    # What the model says, taken for the truth, is what it says when it is measured.
    assert main(["predict", str(run), images, "-o", str(tmp_path / "plain")]) == 0
    truth = [flags[0], f"--masks={tmp_path / 'plain'}", "-o", str(tmp_path / "same")]
    assert main(["evaluate", str(run), *truth]) == 0
    assert json.loads((tmp_path / "same" / "metrics.json").read_text())["mean_dice"] == 1
    assert main(["evaluate", str(run), *flags, "-o", str(tmp_path / "evaluation")]) == 0
    assert "label accuracy " in capfd.readouterr().out


def test_targets_of_training_overlap_and_leave_ignored_pixels_out(tmp_path):
    config = SegmentationConfig(
        **sources(paint_cells(tmp_path / "data")), output=tmp_path / "run", mask_kind="labels", ignore=(7,), **SMALL
    )
    task = SegmentationRecipe(config, QUIET)
    assert task.config.mask_kind == "labels" and task.task.classes.outputs == 3 and task.task.activation == "sigmoid"
    assert mask_counts(task.inspection) == {0: 4 * 224 - 1, 1: 4 * 30, 2: 4 * 32 - 1, IGNORED: 4 * 9}
    images, (target, *_) = next(task.batches())
    assert images.shape == (1, 16, 16, 1) and target.shape == (1, 16, 16, 4)
    nucleus = target[..., 1] == 1
    assert nucleus.any() and (target[..., 0][nucleus] == 1).all()  # inside a cell, and still a cell
    assert not target[target[..., 3] == 0].any()


def test_channels_and_pages_say_the_same(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, (6, 7, 4)).astype("uint8")
    write_image(tmp_path / "channels.tif", Picture(200 * labels))
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(200 * labels, 2, 0), photometric="minisblack")
    Image.fromarray(200 * labels[..., :3]).save(tmp_path / "colours.png")
    for name in ("channels.tif", "pages.tif"):
        assert np.array_equal(read_labels(tmp_path / name), labels)
    assert np.array_equal(read_labels(tmp_path / "colours.png"), labels[..., :3])
    ignored = read_labels(tmp_path / "pages.tif", (200,))
    full = labels.all(axis=2)
    assert (ignored[full] == IGNORED).all() and np.array_equal(ignored[~full], labels[~full])


def test_stacks_have_their_labels_in_channels(tmp_path):
    for name, samples in (("images", 1), ("masks", 2)):
        (tmp_path / name).mkdir()
        pages = np.arange(2 * 5 * 6 * samples, dtype="uint8").reshape(2, 5, 6, samples) % 3
        write_masks(tmp_path / name / "a.tif", list(pages), Classes((0, 1), ("a", "b"), labels=True))
    pairs = inspect_pairs(find_pairs(*sources(tmp_path).values()), QUIET, LabelReader()).pairs
    assert [pair.page for pair in pairs] == [0, 1]
    assert np.array_equal(read_labels(pairs[1].target, page=1), pages[1] != 0)


def test_masks_that_are_no_labels_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    Image.new("P", (4, 4)).save(tmp_path / "palette.png")
    write_image(tmp_path / "half.tif", Picture(np.full((3, 3, 2), 0.5, "float32")))
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((2, 4, 4, 3), "uint8"), photometric="rgb")
    write_image(tmp_path / "two.tif", Picture(np.ones((3, 3, 2), "uint8")))
    wanted = {
        "a.jpg": "is a JPEG",
        "palette.png": "holds a palette",
        "half.tif": "holds fractions",
        "rgb.tif": "holds pages that are not one grey image for each label",
        "none.tif": "does not exist",
    }
    for name, message in wanted.items():
        with pytest.raises(FileError, match=f"{name}: {message}"):
            read_labels(tmp_path / name)
    with pytest.raises(FileError, match="two.tif: holds 2 labels, not 3"):
        LABELS.encode(read_labels(tmp_path / "two.tif"), tmp_path / "two.tif")
    with pytest.raises(FileError, match="two.tif: holds 2 channels, .* use --mask-kind labels"):
        read_mask(tmp_path / "two.tif")
    (tmp_path / "data").mkdir()
    folder = paint_cells(tmp_path / "cells")
    with pytest.raises(FileError, match="holds 3 pages, its image .*need --mask-kind labels"):
        inspect_pairs(find_pairs(*sources(folder).values()), QUIET, MaskReader())
    for count, names in ((1, ()), (300, ()), (3, ("a",))):
        with pytest.raises(ArgumentError, match="must have 2 to 254 channels|must name 3 labels"):
            choose_labels(count, names)


def test_labels_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 2, (2, 9, 11, 3)).astype("uint8")
    predicted[..., 2] = true[..., 2] = 0  # nowhere
    valid = np.broadcast_to(rng.random((9, 11, 1)) > 0.2, true.shape)
    counted = LabelConfusion(3).update(predicted[:4], true[:4], valid[:4]).update(predicted[4:], true[4:], valid[4:])
    both, either = (op(predicted == 1, true == 1) & valid for op in (np.logical_and, np.logical_or))
    iou = both.sum(axis=(0, 1))[:2] / either.sum(axis=(0, 1))[:2]
    assert np.allclose(counted.iou, [*iou, 1]) and counted.mean_iou == pytest.approx(iou.mean())
    assert np.allclose(counted.dice, [*(2 * iou / (1 + iou)), 1]) and counted.occurs.tolist() == [True, True, False]
    assert counted.accuracy == pytest.approx((predicted == true)[valid].mean())
    empty = np.zeros((2, 2, 3), "uint8")
    assert LabelConfusion(3).update(empty, empty, empty == 0).mean_dice == 1
    assert np.isnan(LabelConfusion(3).update(empty, empty, empty == 1).mean_dice)


def test_labels_are_painted_over_one_another():
    labels = np.zeros((1, 4, 2), "uint8")
    labels[0, 1, 0] = labels[0, 2, :] = 1
    labels[0, 3] = IGNORED
    first, second = (np.array(list(bytes.fromhex(colour))) for colour in COLOURS[1:3])
    expected = [[0, 0, 0], first, (first + second) // 2, [64, 64, 64]]
    assert np.array_equal(paint(labels)[0], expected)
    two = Classes((0, 1), ("a", "b"), labels=True)
    assert two.colours == [tuple(first), tuple(second)] and two.outputs == 2
    shown = overlay(np.arange(4, dtype="uint8").reshape(1, 4, 1), labels, two)
    assert shown[0, 0].tolist() == [0, 0, 0] and len(set(shown[0, 1].tolist())) == 3


def test_cards_without_labels_are_of_classes():
    card = {key: value for key, value in Classes((0, 1), ("a", "b")).as_card().items() if key != "labels"}
    assert Classes.from_card(card, "old") == Classes((0, 1), ("a", "b"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of three labels."""
    card = {"task": "segment", "channels": 1, "normalization": "standardize", **LABELS.as_card()}
    return saved(
        tmp_path_factory.mktemp("model"),
        card,
        input_shape=(None, None, 1),
        output_channels=3,
        final_activation="sigmoid",
        stem_kernel_size=3,
        block_kernel_size=3,
        convnext_version="v1",
    )


def test_the_page_shows_every_label_and_gives_all(model, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), dtype="uint8")).save(tmp_path / "a.png")
    shown = apply_model(Predictor(model), tmp_path / "a.png", tmp_path, 10_000)
    masks = tifffile.imread(shown.download)
    assert masks.shape == (3, 20, 24) and 0 < masks.mean() < 1 and shown.after.shape == (20, 24, 3)
    assert [(name, share) for _, name, share in shown.legend] == [
        (name, pytest.approx(mask.mean())) for name, mask in zip(NAMES, masks, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.only_backend("tensorflow")
def test_exports_give_the_same_labels(model, tmp_path, capfd):
    assert main(["export", str(model), "-o", str(tmp_path / "argmax.onnx"), "--activation=argmax"]) == 2
    assert "must not be argmax: the labels of this model may overlap" in capfd.readouterr().err
    assert main(["export", str(model), "-o", str(tmp_path / "model.onnx")]) == 0
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 1), dtype="uint8")
    expected, exported = (Predictor(path)(pixels) for path in (model, tmp_path / "model.onnx"))
    assert np.abs(exported.probabilities - expected.probabilities).max() < 1e-4
    assert exported.pixels.shape == (20, 24, 3) and np.mean(exported.pixels == expected.pixels) > 0.99


@pytest.mark.slow
def test_labels_of_images_larger_than_the_memory_are_written_in_parts(model, tmp_path, capfd):
    image = np.random.default_rng(0).integers(0, 255, (400, 300, 1), dtype="uint8")
    write_image(tmp_path / "large.tif", Picture(image))
    flags = ["-o", str(tmp_path / "out"), "--max-memory=6MB", "--probabilities"]
    assert main(["predict", str(model), str(tmp_path / "large.tif"), *flags]) == 0
    assert "read and written in parts" in capfd.readouterr().out
    labels = read_image(tmp_path / "out" / "large.tif", channels="declared")
    assert np.mean(labels.pixels == Predictor(model)(image).pixels) > 0.9999
