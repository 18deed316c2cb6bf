"""What masks mean is decided over the whole set, however each is stored."""

import csv
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.datasets.inspection import inspect_pairs
from dl_techniques.datasets.pairs import Pair, find_pairs
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.metrics import Calibration, Confusion, LabelConfusion
from dl_techniques.tasks.segmentation.classes import Classes, choose_classes
from dl_techniques.tasks.segmentation.evaluation import SegmentationEvaluation
from dl_techniques.tasks.segmentation.masks import read_mask
from dl_techniques.tasks.segmentation.readers import reader_of
from dl_techniques.tasks.segmentation.task import SegmentationTask
from dl_techniques.training.fingerprint import compare_fingerprints, write_fingerprints
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.settings import MovedData, moved

QUIET = Console(quiet=True)
SIZE = 24
COLOURS = np.array([(0, 0, 0), (0, 200, 0), (200, 0, 0)], "uint8")
BITS = np.array([0, 255], "uint8")


def indices(number, classes=2):
    """Return rectangles of each class on a background, another for each number."""
    mask = np.zeros((SIZE, SIZE), "uint8")
    for label in range(1, classes):
        mask[2 + number : 9 + number, 9 * label - 7 : 9 * label] = label
    return mask


def save_bits(path, samples, bits):
    """Write a grey PNG of samples of few bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    spread = np.unpackbits(samples[..., None], axis=2)[..., 8 - bits :].reshape(len(samples), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(spread, axis=1))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def save_palette(path, mask, colours=COLOURS):
    image = Image.fromarray(mask)
    image.putpalette(colours.ravel().tolist())
    image.save(path)


def save_palette_tiff(path, mask, colours=COLOURS):
    table = np.zeros((3, 256), "uint16")
    table[:, : len(colours)] = colours.T.astype("uint16") * 257
    tifffile.imwrite(path, mask, photometric="palette", colormap=table)


def save_alpha(path, mask):
    Image.fromarray(np.dstack([np.full((*mask.shape, 3), 90, "uint8"), BITS[mask]])).save(path)


def png(values):
    return lambda path, mask: Image.fromarray(np.array(values, "uint8")[mask]).save(path)


def tiff(values, **options):
    return lambda path, mask: tifffile.imwrite(path, np.array(values)[mask], **options)


GREY, WHITE = [0, 255], [(0, 0, 0), (255, 255, 255)]
BINARY = {  # suffix and writer
    "8 bits": (".png", png(GREY)),
    "0 and 1": (".png", png([0, 1])),
    "0 and 7": (".png", png([0, 7])),
    "1 bit": (".png", lambda path, mask: Image.fromarray(mask > 0).save(path)),
    "4 bits": (".png", lambda path, mask: save_bits(path, 15 * mask, 4)),
    "16 bits": (".png", lambda path, mask: Image.fromarray(np.uint16(65535) * mask).save(path)),
    "colours": (".png", png(WHITE)),
    "palette": (".png", lambda path, mask: save_palette(path, mask, np.array(WHITE, "uint8"))),
    "palette of colours": (".png", save_palette),
    "bitmap": (".bmp", png(GREY)),
    "lossless webp": (".webp", lambda path, mask: Image.fromarray(BITS[mask]).save(path, lossless=True)),
    "tiff": (".tif", tiff(np.array(GREY, "uint8"))),
    "tiff of 32 bits": (".tif", tiff(np.array([0, 1], "int32"))),
    "tiff of floats": (".tif", tiff(np.array([0, 1], "float32"))),
    "bits in a tiff": (".tif", tiff(np.array([False, True]))),
    "0 is white": (".tif", tiff(np.array([255, 0], "uint8"), photometric="miniswhite")),
    "palette in a tiff": (".tif", lambda path, mask: save_palette_tiff(path, mask, np.array(WHITE, "uint8"))),
}  # fmt: skip


def write_set(folder, encodings, classes=2, count=4):
    """Write images with masks, each with the next of the encodings; return the settings of a training."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        suffix, save = encodings[number % len(encodings)]
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE), "uint8")).save(folder / "images" / f"{number}.png")
        save(folder / "masks" / f"{number}{suffix}", indices(number, classes))
    return {"images": str(folder / "images"), "masks": str(folder / "masks"), "output": folder / "run"}


def recipe_of(folder, encodings, classes=2, console=QUIET, **settings):
    """Return the recipe of a training on images with masks in encodings."""
    small = {"patch": 16, "batch_size": 2, "depth": 2, "convnext_version": "v1"}
    sources = write_set(folder, encodings, classes)
    return SegmentationRecipe(SegmentationConfig(**{**sources, **small, **settings}), console)


def targets_of(recipe):
    """Return the class indices of each image, by its name."""
    return {sample.name: sample.target for side in (recipe.training, recipe.validation) for sample in side}


def assert_targets(recipe, classes=2):
    found = targets_of(recipe)
    assert recipe.task.classes.count == classes and len(found) == 4
    for name, target in found.items():
        np.testing.assert_array_equal(target, indices(int(name), classes))


@pytest.mark.parametrize("encoding", BINARY)
def test_the_encoding_of_masks_makes_no_difference(encoding, tmp_path):
    recipe = recipe_of(tmp_path / "a", [BINARY[encoding]])
    assert_targets(recipe)
    assert recipe.task.classes.foreground and recipe.task.classes.outputs == 1


def test_the_first_batch_is_the_same_in_every_encoding(tmp_path):
    batches = []
    for number, encoding in enumerate(("8 bits", "1 bit", "palette of colours", "0 is white", "colours")):
        recipe = recipe_of(tmp_path / str(number), [BINARY[encoding]])
        image, target = next(recipe.batches())[:2]
        batches.append((image, *(target if isinstance(target, (tuple, list)) else [target])))
    for batch in batches[1:]:
        for found, expected in zip(batch, batches[0], strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "mixture",
    [
        ("8 bits", "0 and 1"), ("8 bits", "colours"), ("8 bits", "1 bit"), ("8 bits", "4 bits"), ("1 bit", "0 and 1"),
        ("8 bits", "palette"), ("palette", "palette in a tiff"), ("8 bits", "tiff", "bitmap", "lossless webp"),
        ("palette", "colours"), ("8 bits", "0 is white"),
    ],
)  # fmt: skip
def test_binary_masks_stored_in_several_ways_give_one_class(mixture, tmp_path):
    assert_targets(recipe_of(tmp_path, [BINARY[encoding] for encoding in mixture]))


GREYS = np.array([0, 17, 51], "uint8")


@pytest.mark.parametrize(
    "encodings",
    [
        [(".png", lambda path, mask: save_bits(path, GREYS[mask] // 17, 4)), (".png", png(GREYS))],
        [(".png", png(COLOURS)), (".png", save_palette)],
        [(".png", save_palette), (".png", lambda p, m: save_palette(p, (2 - m).astype("uint8"), COLOURS[::-1]))],
        [(".png", save_palette), (".tif", save_palette_tiff), (".png", png([0, 1, 2]))],
        [(".png", png([(v, v, v) for v in GREYS])), (".png", png(GREYS))],
    ],
)  # fmt: skip
def test_classes_stored_in_several_ways_are_the_same_classes(encodings, tmp_path):
    assert_targets(recipe_of(tmp_path, encodings, classes=3), classes=3)


def test_masks_of_two_encodings_with_nothing_in_common_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"0\.png.*\(grey of 8 bits\) holds the values 7; .*1\.png \(colours\)"):
        recipe_of(tmp_path, [(".png", png([0, 7])), (".png", png(COLOURS))])


def test_a_reversed_mask_among_others_is_refused(tmp_path):
    reverse = (".tif", tiff(np.array([0, 255], "uint8"), photometric="miniswhite"))
    with pytest.raises(FileError, match=r"1\.tif: has 0 as white and looks like the reverse of .*0\.png"):
        recipe_of(tmp_path, [BINARY["8 bits"], reverse])


@pytest.mark.parametrize(
    ("suffix", "options", "word"),
    [(".webp", {"quality": 80}, "lossy WEBP"), (".tif", {"compression": "jpeg"}, "TIFF with JPEG compression")],
)
def test_lossy_masks_are_refused(suffix, options, word, tmp_path):
    save = lambda path, mask: Image.fromarray(BITS[mask]).save(path, **options)  # noqa: E731
    with pytest.raises(FileError, match=word):
        recipe_of(tmp_path, [(suffix, save)])


def save_soft(path, mask):
    large = Image.fromarray(np.kron(BITS[mask], np.ones((4, 4), "uint8")))
    large.rotate(7, Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BOX).save(path)


def test_soft_edges_are_no_classes(tmp_path):
    with pytest.raises(ArgumentError, match="must have hard edges"):
        recipe_of(tmp_path / "a", [(".png", save_soft)])
    assert recipe_of(tmp_path / "b", [(".png", save_soft)], mask_kind="foreground").task.classes.count == 2


def save_many(path, mask):
    """Write 36 values, each in several places."""
    tile = np.repeat(np.repeat(np.arange(36, dtype="uint8").reshape(6, 6), 3, 0), 3, 1)
    Image.fromarray(np.tile(tile, (2, 2))[:SIZE, :SIZE] if mask.any() else mask).save(path)


def save_objects(path, mask):
    numbers = np.kron(np.arange(64, dtype="uint8").reshape(8, 8), np.ones((3, 3), "uint8"))
    numbers[::3] = 0
    Image.fromarray(numbers).save(path)


def test_more_classes_than_can_be_meant_are_asked_about(tmp_path):
    with pytest.raises(ArgumentError, match="must hold at most 24 values") as caught:
        recipe_of(tmp_path / "a", [(".png", save_many)])
    assert "--mask-kind classes" in str(caught.value) and "--mask-kind foreground" in str(caught.value)
    assert recipe_of(tmp_path / "b", [(".png", save_many)], mask_kind="classes").task.classes.count == 36
    assert recipe_of(tmp_path / "c", [(".png", save_objects)]).task.classes.foreground  # numbered objects


def test_a_rare_value_is_no_background():
    assert choose_classes({3: 2, 7: 998}).values == (7, 3)
    assert choose_classes({0: 5, 255: 995}).values == (255, 0)
    assert choose_classes({0: 50, 255: 950}).values == (0, 255)


def test_values_that_share_no_mask_are_said(tmp_path):
    savers = [(".png", png([0, 1])), (".png", png([0, 2]))]
    recipe = recipe_of(tmp_path, savers)
    assert "no mask holds two of the values: 1 in 0.png, 2.png; 2 in 1.png, 3.png" in recipe.inspection.notes


def test_a_mask_is_the_alpha_where_that_is_asked(tmp_path):
    assert_targets(recipe_of(tmp_path / "masks", [(".png", save_alpha)], mask_kind="alpha"))
    sources = write_set(tmp_path / "own", [(".png", save_alpha)])
    config = SegmentationConfig(
        images=sources["masks"], output=sources["output"], mask_kind="alpha", patch=16, batch_size=1
    )
    recipe = SegmentationRecipe(config, QUIET)
    assert_targets(recipe)
    assert recipe.config.mask_kind == "alpha" and recipe.inspection.channels == 3
    assert Classes.from_card(recipe.task.classes.as_card(), "") == recipe.task.classes
    with pytest.raises(FileError, match="use --mask-kind alpha"):
        recipe_of(tmp_path / "auto", [(".png", save_alpha)])


def test_a_model_reads_masks_of_any_encoding_as_its_classes(tmp_path):
    classes = Classes((0, 17, 51), ("a", "b", "c"))
    sources = write_set(tmp_path, [(".png", lambda path, mask: save_bits(path, GREYS[mask] // 17, 4))], classes=3)
    pairs = find_pairs(sources["images"], sources["masks"])
    found = inspect_pairs(pairs, QUIET, reader_of(classes))
    SegmentationTask(classes).check_targets(found, QUIET)
    sample = SegmentationTask(classes).sample(pairs[1], *found.read(pairs[1]), 0.0)
    np.testing.assert_array_equal(sample.target, indices(1, 3))


def test_samples_of_few_bits_and_indices_are_read_as_stored(tmp_path):
    samples = np.arange(16, dtype="uint8").reshape(2, 8)
    save_bits(tmp_path / "a.png", samples, 4)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), samples)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", reading="grey"), 17 * samples)
    save_palette_tiff(tmp_path / "a.tif", samples % 3)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), samples % 3)


@pytest.mark.parametrize(("orientation", "fits"), [(3, False), (6, True), (0, True), (9, True), (1, True)])
def test_masks_lie_as_their_images_do(orientation, fits, tmp_path):
    stored = np.zeros((12, 20), "uint8")
    stored[:4, :6] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / "mask.png")  # as the samples lie, without orientation
    pairs = [Pair(tmp_path / "image.png", tmp_path / "mask.png")]
    if not fits:
        with pytest.raises(FileError, match="may be upright or turned against its image"):
            inspect_pairs(pairs, QUIET, reader_of(Classes((0, 255), ("a", "b"))))
        return
    image, mask = inspect_pairs(pairs, QUIET, reader_of(Classes((0, 255), ("a", "b")))).read(pairs[0])
    np.testing.assert_array_equal(image, mask)


def test_a_class_that_is_not_in_the_truth_has_no_dice():
    truth, predicted = np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 2]])
    names = ("sky", "road", "car", "tree")
    evaluation = SegmentationEvaluation(
        Classes((0, 1, 2, 3), names), Confusion(4).update(predicted, truth), Calibration(), (0.5,)
    )
    rows = evaluation.rows()
    assert [row["dice"] for row in rows] == [1.0, pytest.approx(2 / 3), None, None]
    assert evaluation.tables()[0].rows[3] == ("tree", "–", "–") and evaluation.figures()["classes"] == rows
    labels = np.array([[[1, 0]]])
    counts = LabelConfusion(2).update(labels, labels, labels >= 0)
    found = SegmentationEvaluation(Classes((0, 1), ("a", "b"), labels=True), counts, Calibration(), (1.0,)).rows()
    assert [row["iou"] for row in found] == [1.0, None]


def test_three_pictures_show_how_masks_were_understood(tmp_path):
    recipe = recipe_of(tmp_path, [(".png", png([0, 100, 200]))], classes=3)
    rows = recipe.understood()
    assert len(rows) == 3
    for (caption, mask), (_, image) in rows:
        number = int(caption.removeprefix("mask: "))
        assert mask.shape == image.shape == (256, 256, 3)
        assert (mask[:SIZE, :SIZE].any(axis=2) == (indices(number, 3) > 0)).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lists_of_pairs_are_read_as_spreadsheets_write_them(encoding, delimiter, tmp_path):
    for number in range(2):
        (tmp_path / f"p{number}").mkdir()
        for name in ("image", "mask"):
            Image.new("L", (4, 4)).save(tmp_path / f"p{number}" / f"{name}.png")
    with open(tmp_path / "list.csv", "w", encoding=encoding, newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerows([("Image", " TARGET"), *((f"p{n}/image.png", f"p{n}/mask.png") for n in range(2))])
    pairs = find_pairs(str(tmp_path / "list.csv"))
    assert [pair.name for pair in pairs] == ["p0", "p1"]
    assert [pair.target for pair in pairs] == [tmp_path / f"p{number}" / "mask.png" for number in range(2)]


def test_names_meet_however_their_characters_are_composed(tmp_path):
    for folder, name in (("images", "Zelle_\u00e4"), ("masks", "Zelle_a\u0308")):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / folder / f"{name}.png")
    (pair,) = find_pairs(str(tmp_path / "images"), str(tmp_path / "masks"))
    assert pair.name == "Zelle_\u00e4"


def test_folders_of_patients_name_their_files(tmp_path):
    for number in range(2):
        (tmp_path / f"p{number}").mkdir()
        for name in ("image", "mask"):
            Image.new("L", (4, 4)).save(tmp_path / f"p{number}" / f"{name}.png")
    pairs = find_pairs(str(tmp_path / "*" / "image.png"), str(tmp_path / "*" / "mask.png"))
    assert [(pair.name, pair.target.parent.name) for pair in pairs] == [("p0", "p0"), ("p1", "p1")]


def test_blank_tiles_on_both_sides_are_no_leak(tmp_path):
    sources = write_set(tmp_path, [BINARY["8 bits"]])
    for number in range(4):
        Image.new("L", (SIZE, SIZE), 255).save(tmp_path / "images" / f"{number}.png")
    recipe = SegmentationRecipe(SegmentationConfig(**sources, patch=16, batch_size=1), QUIET)
    assert any("4 images are constant" in note for note in recipe.inspection.notes)


def test_a_run_resumes_where_its_data_moved(tmp_path):
    sources = write_set(tmp_path / "old", [BINARY["8 bits"]])
    config = SegmentationConfig(**sources, patch=16, batch_size=1)
    run = sources["output"]
    run.mkdir()
    write_fingerprints(run, SegmentationRecipe(config, QUIET).inspection)
    (tmp_path / "old" / "images").rename(tmp_path / "images")
    (tmp_path / "old" / "masks").rename(tmp_path / "masks")
    with pytest.raises(FileError, match=r"If the data were moved, add --images: resume --images FOLDER"):
        moved(config, MovedData(), "resume")
    with pytest.raises(ArgumentError, match="must be given only where the run was started with it"):
        moved(config, MovedData(val_images="x"), "resume")
    elsewhere = moved(config, MovedData(images=str(tmp_path / "images"), masks=str(tmp_path / "masks")), "resume")
    compare_fingerprints(run, SegmentationRecipe(elsewhere, QUIET).inspection)
    Image.fromarray(BITS[indices(3)]).save(tmp_path / "masks" / "0.png")
    with pytest.raises(FileError, match="was started on other files"):
        compare_fingerprints(run, SegmentationRecipe(elsewhere, QUIET).inspection)


def test_resuming_takes_the_places_of_data(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path), "--images", "a", "--val-masks", "b"]) == 2
    assert "holds no run" in capsys.readouterr().err
