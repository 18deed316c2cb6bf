"""What is wrong with a data set is told of all its files at once, the first ten named, before anything is trained."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.datasets.inspection import inspect_pairs
from dl_techniques.datasets.pairs import find_pairs
from dl_techniques.errors import ConvUNextError, FileError, first_of
from dl_techniques.images.files import Picture, write_image, write_images
from dl_techniques.tasks.segmentation.readers import MaskReader
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.trainer import train
from models import small_model

QUIET = Console(quiet=True)
COUNT = 14


def paint(folder, count=COUNT, kind="masks"):
    """Write noisy images and masks of two stripes with a corner that does not count."""
    rng = np.random.default_rng(0)
    for name in ("images", kind):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((16, 16), "uint8")
    mask[:, 8:] = 1
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (16, 16), "uint8")).save(folder / "images" / f"{index:02}.png")
        Image.fromarray(mask).save(folder / kind / f"{index:02}.png")
    return folder


def settings(folder, **changes) -> SegmentationConfig:
    sources = {"images": str(folder / "images"), "masks": str(folder / "masks"), "output": folder / "run"}
    small = {"steps": 2, "steps_per_epoch": 2, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4}
    return SegmentationConfig(**{**sources, **small, "convnext_version": "v1", **changes})


def refused(config) -> str:
    with pytest.raises(ConvUNextError) as caught:
        train(config, QUIET)
    assert not config.output.exists()
    return str(caught.value)


def test_ten_are_shown_and_the_rest_is_counted():
    names = [str(number) for number in range(12)]
    assert first_of(names[:10]).endswith("8, 9") and first_of(names).endswith("8, 9 and 2 more")
    assert first_of(names, "\n  ").endswith("\n  9\n  and 2 more")


def test_missing_masks_and_masks_without_image_are_listed_together(tmp_path):
    folder = paint(tmp_path)
    for index in range(11):
        (folder / "masks" / f"{index:02}.png").rename(folder / "masks" / f"other{index:02}.png")
    message = refused(settings(folder))
    assert "has no target for 00.png, 01.png" in message and "09.png and 1 more, and 11 targets without" in message
    assert "an image: other00.png" in message and "Add the targets" in message
    for index in range(11):
        (folder / "masks" / f"other{index:02}.png").rename(folder / "masks" / f"{index:02}.png")
        (folder / "images" / f"{index:02}.png").unlink()
    assert "images: has no image for 00.png" in refused(settings(folder))


def test_all_that_is_wrong_with_pairs_is_told_at_once(tmp_path):
    folder = paint(tmp_path)
    for index in range(8):
        Image.new("L", (5, 7)).save(folder / "masks" / f"{index:02}.png")
    Image.new("L", (16, 16)).save(folder / "masks" / "08.jpg")
    (folder / "masks" / "08.png").unlink()
    (folder / "masks" / "08.jpg").rename(folder / "masks" / "08.png")  # its name says what it is not
    (folder / "images" / "09.png").write_bytes((folder / "images" / "09.png").read_bytes()[:60])
    for index in (10, 11):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / "images" / f"{index}.png")
    message = refused(settings(folder))
    assert "12 of 14 pairs cannot be used:" in message and message.endswith("\n  and 2 more")
    shown = "\n".join(sorted(message.splitlines()[1:11]))
    assert "images/09.png: cannot be read" in shown
    assert "00.png: is 5x7 pixels, its image 00.png 16x16. Resize one." in shown and "07.png" not in shown
    for index in range(8):
        (folder / "masks" / f"{index:02}.png").write_bytes((folder / "masks" / "12.png").read_bytes())
    message = refused(settings(folder))
    assert "08.png: is a JPEG" in message and "4 of 14" in message
    assert message.count("has 3 channels where most have 1") == 2


def test_each_image_on_both_sides_is_named(tmp_path):
    folder = paint(tmp_path)
    sources = {"val_images": str(folder / "images" / "0*.png"), "val_masks": str(folder / "masks" / "0*.png")}
    message = refused(settings(folder, **sources))
    assert "10 of 24 pairs" in message and message.count("which is in the training set. Remove one of them") == 10


def test_values_that_are_no_class_are_named_with_their_files(tmp_path, capfd):
    folder = paint(tmp_path)
    for index in range(12):
        mask = np.array(Image.open(folder / "masks" / f"{index:02}.png"))
        mask[0, 0] = 2  # the number of the classes
        Image.fromarray(mask).save(folder / "masks" / f"{index:02}.png")
    message = refused(settings(folder, mask_kind="classes", classes=("sky", "road")))
    assert "`classes` must name 3 classes, one for each of the values 0, 1, 2" in message
    assert "2 is in" in message and "masks/00.png" in message and "masks/09.png and 2 more" in message

    model = small_model(input_shape=(None, None, 1), output_channels=1, final_activation="sigmoid")
    classes = [{"name": name, "mask_value": value} for value, name in enumerate(("sky", "road"))]
    rest = {"ignored_mask_values": [], "every_other_value_is_foreground": False}
    model.save_to_preset(tmp_path / "preset", {"task": "segment", "channels": 1, "classes": classes, **rest})
    flags = [f"--images={folder / 'images'}", f"--masks={folder / 'masks'}", f"--output={folder / 'out'}"]
    assert main(["evaluate", str(tmp_path / "preset"), *flags]) == 2
    told = capfd.readouterr().err
    assert "12 of 14 masks" in told and "00.png: holds the values 2, but the classes are 0, 1" in told
    assert "and 2 more" in told and not (folder / "out").exists()


def test_two_files_of_one_stem_are_all_named(tmp_path):
    folder = paint(tmp_path, 3)
    for index in range(3):
        write_image(folder / "images" / f"{index:02}.tif", Picture(np.zeros((16, 16, 1), "uint8")))
    message = refused(settings(folder))
    assert "00.tif: has the same stem as 00.png; so have 01.tif and 01.png, 02.tif and 02.png" in message


def test_stacks_of_other_lengths_are_all_named(tmp_path):
    for name, pages in (("images", 3), ("masks", 2)):
        (tmp_path / name).mkdir()
        for index in range(3):
            write_images(tmp_path / name / f"{index}.tif", [Picture(np.zeros((8, 8, 1), "uint8"))] * pages)
    with pytest.raises(FileError, match="3 of 3 pairs cannot be used") as refused:
        inspect_pairs(find_pairs(str(tmp_path / "images"), str(tmp_path / "masks")), QUIET, MaskReader())
    for name, line in zip(("0.tif", "1.tif", "2.tif"), str(refused.value).splitlines()[1:], strict=True):
        assert f"masks/{name}: holds 2 pages, its image " in line and f"images/{name} 3 pages. A stack needs" in line


def test_samples_that_are_no_numbers_are_named_in_every_task(tmp_path):
    folder = paint(tmp_path)
    pixels = np.random.default_rng(0).uniform(size=(16, 16, 1)).astype("float32")
    for index in range(COUNT):
        (folder / "images" / f"{index:02}.png").unlink()
        pixels[0, 0] = [np.nan, np.inf][index % 2] if index < 12 else index
        write_image(folder / "images" / f"{index:02}.tif", Picture(pixels))
    found = "12 of 14 pairs cannot be used"
    message = refused(settings(folder))
    assert found in message and "00.tif: holds 1 samples that are NaN or infinite" in message
    small = {"patch": 8, "final_patch": 8, "steps": 2, "steps_per_epoch": 2, "held_out": 1}
    config = DenoisingConfig(images=str(folder / "images"), output=folder / "run", **small)
    with pytest.raises(FileError, match=f"{found}:\n.*00.tif: holds 1 samples that are NaN(.*\n)+  and 2 more"):
        train(config, QUIET)
    assert not config.output.exists()


def test_images_smaller_than_a_patch_are_all_named(tmp_path):
    folder = paint(tmp_path)
    small = {"patch": 32, "final_patch": 8, "steps": 2, "steps_per_epoch": 2, "held_out": 2}
    config = DenoisingConfig(images=str(folder / "images"), output=folder / "run", **small)
    with pytest.raises(FileError, match=r"02.png: is smaller than a patch of 32 pixels; so are .*03.png, .*and 1 more"):
        train(config, QUIET)


def test_two_values_need_no_mapping_and_a_label_too_high_is_a_class(tmp_path):
    folder = paint(tmp_path, 3)
    for index in range(3):
        mask = 255 * np.array(Image.open(folder / "masks" / f"{index:02}.png"))
        Image.fromarray(mask).save(folder / "masks" / f"{index:02}.png")
    task = SegmentationRecipe(settings(folder, classes=("nothing", "cell")), QUIET)
    assert (
        task.task.classes.values == (0, 255)
        and task.task.classes.names == ("nothing", "cell")
        and task.task.classes.outputs == 1
    )
