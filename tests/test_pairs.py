"""Images and masks found by name, split by group, read as they were painted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets.pairs import Pair, find_pairs, split_pairs
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import Picture, write_image
from dl_techniques.tasks.segmentation.classes import IGNORED, choose_classes
from dl_techniques.tasks.segmentation.masks import read_mask


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (4, 3)).save(folder / name)
    return str(folder)


# === pairs ===


@pytest.mark.parametrize("ending", ["", "_mask"])
def test_targets_are_matched_by_stem_and_shared_ending(ending, tmp_path):
    images = touch(tmp_path / "images", "b.png", "a.tif", "a2.png")
    masks = touch(tmp_path / "masks", f"a{ending}.png", f"a2{ending}.png", f"b{ending}.png")
    pairs = find_pairs(images, masks)
    assert [(pair.name, pair.target.stem) for pair in pairs] == [(n, n + ending) for n in ("a", "a2", "b")]
    assert pairs == find_pairs(images + "/*.*", masks + "/*.png")


def test_csv_names_pairs_relative_to_itself(tmp_path):
    touch(tmp_path / "x", "one.png", "two.png")
    (tmp_path / "list.csv").write_text("target,image\nx/two.png,x/one.png\n")
    assert find_pairs(str(tmp_path / "list.csv")) == [Pair(tmp_path / "x/one.png", tmp_path / "x/two.png")]
    (tmp_path / "list.csv").write_text("target,image\nx/two.png,x/three.png\n")
    with pytest.raises(FileError, match="list.csv: names files that do not exist: three.png"):
        find_pairs(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").write_text("mask,image\n")
    with pytest.raises(FileError, match="no rows with columns 'image' and 'target'"):
        find_pairs(str(tmp_path / "list.csv"))


def test_first_ten_without_counterpart_are_named(tmp_path):
    images = touch(tmp_path / "images", *(f"{i:02}.png" for i in range(14)))
    masks = touch(tmp_path / "masks", "13.png")
    with pytest.raises(FileError, match=r"masks: has no target for 00.png, .*09.png and 3 more"):
        find_pairs(images, masks)
    with pytest.raises(FileError, match="has no image for 00.png"):
        find_pairs(masks, images)


def test_two_files_of_one_stem_and_empty_places_are_refused(tmp_path):
    with pytest.raises(FileError, match="a.tif: has the same stem as a.png"):
        find_pairs(touch(tmp_path / "images", "a.png", "a.tif"), touch(tmp_path / "masks", "a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty: holds no image"):
        find_pairs(str(tmp_path / "empty"), str(tmp_path / "masks"))
    with pytest.raises(FileError, match="matches no file"):
        find_pairs(str(tmp_path / "*.jpg"), str(tmp_path / "masks"))
    with pytest.raises(ArgumentError, match="`targets` must name the folder"):
        find_pairs(str(tmp_path / "images"))


def pairs_named(*names):
    return [Pair(path, path) for path in map(Path, names)]


def test_groups_stay_on_one_side_and_do_not_depend_on_others():
    pairs = pairs_named(*(f"film{f}_{i}.png" for f in range(10) for i in range(3)))
    training, validation = split_pairs(pairs, 0.2, seed=1, group_regex="^(film[0-9])_")
    films = [{pair.name[:5] for pair in side} for side in (training, validation)]
    assert len(validation) == 6 and not films[0] & films[1] and len(training) + len(validation) == 30
    assert split_pairs(pairs[::-1], 0.2, 1, "^(film[0-9])_")[1] == validation[::-1]
    assert split_pairs(pairs, 0.2, 2, "^(film[0-9])_")[1] != validation


@pytest.mark.parametrize(
    "regex, message", [("(", "regular expression"), ("^x", "match every name"), ("film", "two gr")]
)
def test_patterns_that_do_not_split_are_refused(regex, message):
    with pytest.raises(ArgumentError, match=f"`group_regex` must.*{message}"):
        split_pairs(pairs_named("film1.png", "film2.png"), 0.5, 0, regex)


# === masks ===


def test_masks_are_read_as_painted(tmp_path):
    values = np.array([[0, 1, 2], [3, 200, 255]], "uint8")
    Image.fromarray(values).save(tmp_path / "grey.png")
    palette = Image.new("P", (3, 2))
    palette.putdata(values.ravel().tolist())
    palette.putpalette([7, 7, 7] * 256)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values > 1).save(tmp_path / "bits.png")
    for name, array in (("deep.tif", values.astype("uint16") * 257), ("float.tif", values.astype("float32"))):
        write_image(tmp_path / name, Picture(array[..., None]))
    write_image(tmp_path / "colour.png", Picture(np.stack([values, values * 0, values * 0 + 5], -1)))
    expected = {
        "grey.png": values,
        "palette.png": values,
        "bits.png": values > 1,
        "deep.tif": values.astype(int) * 257,
        "float.tif": values,
        "colour.png": values.astype(int) * 65536 + 5,
    }
    for name, mask in expected.items():
        read = read_mask(tmp_path / name)
        assert read.dtype == "int32" and np.array_equal(read, mask), name


def test_masks_that_are_none_are_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(FileError, match="a.jpg: is a JPEG.*PNG or TIFF"):
        read_mask(tmp_path / "a.jpg")
    write_image(tmp_path / "a.tif", Picture(np.full((3, 3, 1), 0.5, "float32")))
    with pytest.raises(FileError, match="a.tif: holds fractions"):
        read_mask(tmp_path / "a.tif")
    (tmp_path / "a.png").write_bytes(b"<html>")
    with pytest.raises(FileError, match="a.png: is not an image"):
        read_mask(tmp_path / "a.png")
    with pytest.raises(FileError, match="does not exist"):
        read_mask(tmp_path / "b.png")


def test_two_values_and_instances_are_foreground(tmp_path):
    binary = choose_classes({0: 5, 255: 3})
    assert binary.outputs == 1 and binary.foreground and binary.activation == "sigmoid"
    assert binary.encode(np.array([[0, 255]]), tmp_path).tolist() == [[0, 1]]
    instances = choose_classes(dict.fromkeys(range(60), 1))
    assert instances.outputs == 1 and instances.encode(np.array([[0, 7, 59]]), tmp_path).tolist() == [[0, 1, 1]]


def test_classes_keep_the_order_of_values_and_ignored_pixels_apart(tmp_path):
    classes = choose_classes({4: 1, 0: 1, 9: 1, 11: 1}, ignored=(11,), names=("sky", "road", "car"))
    assert classes.outputs == 3 and classes.activation == "softmax" and classes.values == (0, 4, 9)
    assert classes.encode(np.array([[0, 4], [9, 11]]), tmp_path).tolist() == [[0, 1], [2, IGNORED]]
    with pytest.raises(FileError, match="mask.png: holds the values 3, but the classes are 0, 4, 9"):
        classes.encode(np.array([[0, 3]]), tmp_path / "mask.png")


@pytest.mark.parametrize(
    "counts, arguments, message",
    [
        ({0: 1, 1: 1, 2: 1}, {"names": ("a", "b")}, "must name 3 classes, one for each of the values 0, 1, 2"),
        ({0: 1}, {"kind": "classes"}, "`masks` must hold at least two classes"),
        ({0: 1, 1: 1}, {"names": ("a",)}, "must name two classes"),
        (dict.fromkeys(range(300), 1), {"kind": "classes"}, "at most 254"),
        ({0: 9}, {}, "`masks` must hold at least two classes"),
    ],
)
def test_values_that_are_no_classes_are_refused(counts, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        choose_classes(counts, **arguments)
