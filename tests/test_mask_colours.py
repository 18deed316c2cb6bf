"""Classes keep the colours of the masks that they were learned from."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.images.files import open_image
from dl_techniques.tasks.segmentation.classes import COLOURS, Classes, value_names
from dl_techniques.tasks.segmentation.readers import MaskReader
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig

pytestmark = pytest.mark.usefixtures("eager")

PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 255))
MASK = np.repeat(np.arange(3, dtype="uint8"), 8)[None].repeat(16, axis=0)
SMALL = {
    "steps": 2, "steps_per_epoch": 2, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4,
    "convnext_version": "v1",
}  # fmt: skip


def save_palette(path, colours=PALETTE):
    image = Image.fromarray(MASK)
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)


def save_painted(path, colours=PALETTE):
    Image.fromarray(np.array(colours, "uint8")[MASK]).save(path)


def settings(folder, save, output="run") -> SegmentationConfig:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, MASK.shape, "uint8")).save(folder / "images" / f"{index}.png")
        save(folder / "masks" / f"{index}.png")
    sources = {name: str(folder / name) for name in ("images", "masks")}
    return SegmentationConfig(**sources, output=folder / output, **SMALL)


def mask_colours(path):
    reader = MaskReader()
    with open_image(path) as source:
        return reader.describe(*reader.read(source, None, "declared", None)).colours


def test_colours_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.png"
    numbers = [red << 16 | green << 8 | blue for red, green, blue in PALETTE]
    save_palette(path)
    assert mask_colours(path) == dict(enumerate(numbers))
    save_painted(path)
    assert mask_colours(path) == {number: number for number in numbers}
    Image.fromarray(MASK).save(path)
    assert mask_colours(path) == {}
    save_palette(path, [(value, value, value) for value in range(3)])
    assert mask_colours(path) == {}  # a ramp of grey shows nothing
    tifffile.imwrite(tmp_path / "a.tif", np.array(PALETTE, "uint8")[MASK], photometric="rgb")
    assert mask_colours(tmp_path / "a.tif") == {number: number for number in numbers}


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_palette, save_painted])
def test_predicted_masks_have_the_colours_of_those_learned_from(save, tmp_path):
    config = settings(tmp_path, save)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    sources = [f"--images={config.images}", f"--masks={config.masks}"]
    assert main(["train", "segment", *sources, *flags, f"--output={config.output}"]) == 0
    entries = read_card(config.output / "model.keras").as_dict()["classes"]
    colours = [tuple(bytes.fromhex(entry["colour"][1:])) for entry in entries]
    assert set(colours) == set(PALETTE)
    assert main(["predict", str(config.output), f"{config.images}/0.png", f"--output={tmp_path / 'out.png'}"]) == 0
    with Image.open(tmp_path / "out.png") as file:
        assert file.mode == "P" and np.array_equal(np.reshape(file.getpalette()[:9], (3, 3)), colours)


def test_masks_without_colours_get_ours_and_palettes_that_differ_are_read_by_colour(tmp_path):
    ours = [tuple(bytes.fromhex(colour)) for colour in COLOURS[:3]]
    config = settings(tmp_path / "grey", lambda path: Image.fromarray(MASK).save(path))
    classes = SegmentationRecipe(config, Console(quiet=True)).task.classes
    assert classes.colours == ours and "colour" not in classes.as_card()["classes"][0]
    config = settings(tmp_path / "mixed", save_palette)
    save_palette(tmp_path / "mixed" / "masks" / "1.png", PALETTE[::-1])
    classes = SegmentationRecipe(config, Console(quiet=True)).task.classes  # of two palettes, by colour
    assert classes.colours == sorted(PALETTE)
    save_palette(tmp_path / "mixed" / "masks" / "1.png")
    classes = SegmentationRecipe(config, Console(quiet=True)).task.classes
    assert classes.colours == list(PALETTE) and Classes.from_card(classes.as_card(), "") == classes


def test_values_are_named_as_colours_where_one_is():
    assert value_names([0, 0xC800, 0xFF0000]) == ["#000000", "#00c800", "#ff0000"]
    assert value_names([0, 128, 51200]) == ["0", "128", "51200"]
