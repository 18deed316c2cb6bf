"""Training on images of any number of channels: what is a channel, what is alpha, and what comes of it."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.inspection import inspect_pairs
from dl_techniques.errors import FileError
from dl_techniques.images.display import contact_sheet
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.tasks.base import Sample
from dl_techniques.tasks.segmentation.classes import Classes
from dl_techniques.tasks.segmentation.masks import read_mask
from dl_techniques.tasks.segmentation.readers import MaskReader
from dl_techniques.tasks.segmentation.task import SegmentationTask
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.trainer import train

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {
    "steps": 2, "steps_per_epoch": 2, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4,
    "preview_every": 1,
}  # fmt: skip
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()] + ["--convnext-version=v1"]
QUIET = Console(quiet=True)


def paint(folder, channels, count=4, dtype="uint16"):
    """Write noise whose last channel alone tells what the mask is."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros((24, 28), "uint8")
        mask[4 * index : 4 * index + 10, 6:20] = 255
        pixels = rng.uniform(0, 20, (24, 28, channels))
        pixels[..., -1] += mask
        write_image(folder / "images" / f"{index}.tif", Picture(pixels.astype(dtype)))
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return folder


def sources(folder) -> dict[str, str]:
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


@pytest.mark.slow
def test_all_samples_of_a_tiff_are_trained_on_measured_and_predicted_from(tmp_path, capfd):
    folder, run, channels = paint(tmp_path / "data", 5), tmp_path / "run", 5
    flags = [f"--{name}={path}" for name, path in sources(folder).items()]
    assert main(["train", "segment", *flags, *FLAGS, "-o", str(run)]) == 0
    assert f"{channels} channels, uint16" in capfd.readouterr().out
    assert read_card(run / "model.keras").as_dict()["channels"] == channels
    (preview,) = (run / "previews").iterdir()
    assert read_image(preview).pixels.shape == (32, 4 * 36, 3)

    assert main(["evaluate", str(run), *flags, "-o", str(tmp_path / "evaluation")]) == 0
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["images"] == 4
    assert main(["predict", str(run), str(folder / "images"), "-o", str(tmp_path / "out"), "--overlay"]) == 0
    assert read_mask(tmp_path / "out" / "2.png").shape == (24, 28)
    assert read_image(tmp_path / "out" / "2-overlay.png").pixels.shape == (24, 28, 3)


@pytest.mark.parametrize("channels, shown", [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)])
def test_pictures_show_three_channels_or_one(channels, shown):
    image = np.random.default_rng(0).normal(size=(6, 7, channels)).astype("float32")
    sample = Sample("a", image, np.zeros((6, 7), "uint8"))
    task = SegmentationTask(Classes((0, 1), ("background", "cell")))
    pictures = [picture for _, picture in task.pictures(sample, np.zeros((6, 7, 1), "float32"))]
    assert pictures[0].shape == ((6, 7, 3) if shown == 3 else (6, 7))
    assert contact_sheet([[("", picture) for picture in pictures]]).shape == (14, 4 * 15, 3)
    low, high = np.percentile(image[..., :shown], (0.5, 99.5))
    expected = np.clip((image[..., :shown].astype("float64") - low) / (high - low), 0, 1)
    assert np.array_equal(np.atleast_3d(pictures[0]), np.rint(255 * expected).astype("uint8"))


@pytest.mark.slow
def test_pairs_of_four_channels_are_restored(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "targets"):
        (tmp_path / name).mkdir()
    for index in range(3):
        target = rng.uniform(0, 60_000, (16, 20, 4))
        for name, pixels in (("images", target / 2), ("targets", target)):
            write_image(tmp_path / name / f"{index}.tif", Picture(pixels.astype("uint16")))
    config = RestorationConfig(
        images=str(tmp_path / "images"), targets=str(tmp_path / "targets"), output=tmp_path / "run", **SMALL
    )
    result = train(config, QUIET)
    assert (
        np.isfinite(result.figures["psnr_db"]) and read_card(config.output / "model.keras").as_dict()["channels"] == 4
    )
    assert main(["predict", str(config.output), str(tmp_path / "images"), "-o", str(tmp_path / "out")]) == 0
    restored = read_image(tmp_path / "out" / "1.tif", channels=4).pixels
    assert restored.shape == (16, 20, 4) and restored.dtype == np.uint16


def test_what_files_call_alpha_is_left_out_unless_it_is_asked_for(tmp_path):
    folder = paint(tmp_path, 4, dtype="uint8")
    for path in (folder / "images").iterdir():
        pixels = read_image(path, channels=4).pixels
        Image.fromarray(pixels, "RGBA").save(path.with_suffix(".png"))
        path.unlink()
    task = SegmentationRecipe(SegmentationConfig(**sources(folder), output=tmp_path / "run", **SMALL), QUIET)
    assert task.inspection.channels == 3 and task.training[0].image.shape == (24, 28, 3)
    assert task.inspection.notes == ("alpha left out: 4 of 4 images",)
    config = SegmentationConfig(**sources(folder), output=tmp_path / "run", channels=4, **SMALL)
    task = SegmentationRecipe(config, QUIET)
    assert task.inspection.channels == 4 and task.training[0].image.shape == (24, 28, 4) and not task.inspection.notes


@pytest.mark.parametrize(
    "extra, photometric, expected",
    [
        (["unassalpha"], "rgb", (3, True)),
        (["unspecified"], "rgb", (4, False)),
        (["unassalpha", "unspecified"], "rgb", (4, True)),
        (["unspecified"], "minisblack", (2, False)),
        (["assocalpha"], "minisblack", (1, True)),
        (["unspecified"] * 6, "minisblack", (7, False)),
    ],
)
def test_a_tiff_says_itself_which_sample_is_alpha(extra, photometric, expected, tmp_path):
    samples = len(extra) + (3 if photometric == "rgb" else 1)
    pixels = np.arange(20 * samples, dtype="uint8").reshape(4, 5, samples)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, extrasamples=extra, planarconfig="contig")
    picture = read_image(tmp_path / "a.tif", channels="declared")
    assert (picture.pixels.shape[2], picture.alpha is not None) == expected
    place = samples - len(extra)
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, pixels[..., place])
        pixels = np.delete(pixels, place, axis=2)
    assert np.array_equal(picture.pixels, pixels)


def test_channels_that_differ_are_named(tmp_path):
    folder = paint(tmp_path, 5)
    write_image(folder / "images" / "2.tif", Picture(np.ones((24, 28, 4), "uint16")))
    config = SegmentationConfig(**sources(folder), output=tmp_path / "run", **SMALL)
    with pytest.raises(FileError, match="2.tif: has 4 channels where most have 5"):
        SegmentationRecipe(config, QUIET)
    pairs = [facts.pair for facts in SegmentationRecipe(config_of(tmp_path / "more"), QUIET).inspection.facts]
    with pytest.raises(FileError, match="4 of 4 pairs cannot be used:\n.*nor of 4 channels"):
        inspect_pairs(pairs, QUIET, MaskReader(), channels=4)


def config_of(folder) -> SegmentationConfig:
    return SegmentationConfig(**sources(paint(folder, 5)), output=folder / "run", **SMALL)
