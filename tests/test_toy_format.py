"""A new image format is one module and one line of `images/formats.py`, and every command takes it."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.images.formats import TABLE, suffixes
from dl_techniques.inference.predictor import Predictor
from dl_techniques.tasks.segmentation.masks import read_mask
from toy_package import PACKAGE, copy_package, run_commands, run_script

TABLE_FILE = Path("images", "formats.py")
MODULE = '''
"""Arrays of NumPy, `(height, width)` or `(height, width, channels)`."""

import numpy as np

from dl_techniques.images.source import Decoded, ImageSource


class Source(ImageSource):
    def _shape(self, page):
        height, width, *channels = self._decode(page).array.shape
        return height, width, *(channels or [1])

    def _decode(self, page):
        self.file.seek(0)
        return Decoded(np.load(self.file, allow_pickle=False))


def write(file, path, name, pictures):
    (picture,) = pictures
    np.save(file, picture.samples)
'''
ROW = '    ImageFormat("NPY", (".npy",), rb"\\x93NUMPY", "dl_techniques.images.npy", DEEP, alpha=False),\n'
SMALL = ["--steps=2", "--steps-per-epoch=2", "--patch=16", "--batch-size=1", "--depth=2", "--initial-filters=4"]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package that has one more format."""
    package = copy_package(tmp_path_factory.mktemp("package"))
    (package / "images" / "npy.py").write_text(MODULE)
    table = (PACKAGE / TABLE_FILE).read_text(encoding="utf-8")
    assert table.count("TABLE = (\n") == 1 and len(MODULE.splitlines()) <= 60 and ROW.count("\n") == 1
    (package / TABLE_FILE).write_text(table.replace("TABLE = (\n", "TABLE = (\n" + ROW))
    return package


def test_a_format_is_a_module_and_a_line(package, preset, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks", "png-images", "png-masks"):
        (tmp_path / name).mkdir()
    for index in range(3):
        image = rng.integers(0, 255, (20, 24), dtype="uint8")
        for name, array in (("images", image), ("masks", np.uint8(image > 127))):
            np.save(tmp_path / name / f"{index}.npy", array)
            write_image(tmp_path / f"png-{name}" / f"{index}.png", Picture(array[..., None]))

    sources, engine = ["--images=images", "--masks=masks"], "--engine=openvino"
    trained, *done = run_commands(
        package,
        tmp_path,
        ["train", "segment", *sources, *SMALL, "--convnext-version=v1", "--output=run"],
        ["evaluate", "run", *sources, "--output=evaluation"],
        ["evaluate", "run", "--images=png-images", "--masks=png-masks", "--output=png-evaluation"],
        ["predict", "run", "images", engine, "--output=masks-found"],
        ["predict", str(preset), "images", engine, "--output=restored"],
        ["predict", str(preset), "png-images", engine, "--output=png-restored"],
        ["predict", "run", "images", engine, "--output=bulk", "--ray"],
    )
    assert [result.status for result in (trained, *done)] == [0] * 7, (trained, *done)
    assert "3 images (3 of 24x20), 1 channels, uint8" in trained.output
    assert "2 images to train on, 1 to validate on" in trained.output
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("evaluation", "png-evaluation")
    )
    assert first["images"] == 3 and first == second

    # Masks are written in a format of masks, restored images in their own.
    predictor = Predictor(tmp_path / "run", engine="openvino")
    for number in range(3):
        expected = predictor(np.load(tmp_path / "images" / f"{number}.npy")[..., None]).pixels[..., 0]
        assert np.mean(read_mask(tmp_path / "masks-found" / f"{number}.png") == expected) > 0.99
        restored = np.load(tmp_path / "restored" / f"{number}.npy")
        assert restored.shape == (20, 24, 1) and restored.dtype == np.uint8
        assert np.array_equal(restored, read_image(tmp_path / "png-restored" / f"{number}.png").pixels)
        name = f"{number}.png"
        assert (tmp_path / "bulk" / name).read_bytes() == (tmp_path / "masks-found" / name).read_bytes()

    code = "from pathlib import Path\nfrom dl_techniques.inference.predictor import Predictor\n"
    code += "from dl_techniques.page.applying import apply_model\n"
    code += "print(apply_model(Predictor('run', engine='openvino'), Path('images/1.npy'), Path(), 10_000).download)"
    shown = tmp_path / run_script(package, tmp_path, code).splitlines()[-1]
    assert np.array_equal(read_mask(shown), read_mask(tmp_path / "masks-found" / "1.png"))


def test_no_other_file_lists_formats():
    """Suffixes that stand together, and the bytes that files begin with, are in the table alone."""
    heads = tuple(row.head[:3] for row in TABLE) + (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"RIFF")
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / TABLE_FILE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = [*node.keys, *node.values] if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            listed = [part.value for part in parts if isinstance(part, ast.Constant) and part.value in suffixes()]
            assert len(listed) < 2, f"{path} lists {listed}"
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                assert not node.value.startswith(heads), f"{path} holds {node.value!r}"
