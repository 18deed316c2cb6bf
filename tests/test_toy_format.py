"""A new image format is one module and one line of `images/formats.py`, and every command takes it."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dl_techniques.cli import main
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.images.formats import TABLE, suffixes
from dl_techniques.inference.predictor import Predictor
from dl_techniques.tasks.segmentation.masks import read_mask

PACKAGE = Path(__file__).parents[1] / "src" / "dl_techniques"
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
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / PACKAGE.name / "images" / "npy.py").write_text(MODULE)
    table = (PACKAGE / TABLE_FILE).read_text(encoding="utf-8")
    assert table.count("TABLE = (\n") == 1 and len(MODULE.splitlines()) <= 60 and ROW.count("\n") == 1
    (folder / PACKAGE.name / TABLE_FILE).write_text(table.replace("TABLE = (\n", "TABLE = (\n" + ROW))
    return folder


def test_a_format_is_a_module_and_a_line(package, preset, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for name in ("images", "masks", "png-images", "png-masks"):
        (data / name).mkdir(parents=True)
    for index in range(3):
        image = rng.integers(0, 255, (20, 24), dtype="uint8")
        for name, array in (("images", image), ("masks", np.uint8(image > 127))):
            np.save(data / name / f"{index}.npy", array)
            write_image(data / f"png-{name}" / f"{index}.png", Picture(array[..., None]))

    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        words = [sys.executable, *arguments]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(*arguments: str) -> str:
        return python("-m", "dl_techniques.cli", *arguments)

    # Training and evaluation
    sources = [f"--images={data / 'images'}", f"--masks={data / 'masks'}"]
    run = tmp_path / "run"
    said = command("train", "segment", *sources, *SMALL, "--convnext-version=v1", f"--output={run}")
    assert "3 images (3 of 24x20), 1 channels, uint8" in said and "2 images to train on, 1 to validate on" in said
    command("evaluate", str(run), *sources, f"--output={tmp_path / 'evaluation'}")
    same = [f"--images={data / 'png-images'}", f"--masks={data / 'png-masks'}", f"--output={tmp_path / 'same'}"]
    assert main(["evaluate", str(run), *same]) == 0
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("evaluation", "same"))
    assert first["images"] == 3 and first == second

    # Prediction: masks in a format of masks, restored images in their own
    flags = [str(data / "images"), "--engine=keras"]
    command("predict", str(run), *flags, f"--output={tmp_path / 'masks'}")
    expected = {n: Predictor(run, engine="keras")(np.load(data / "images" / f"{n}.npy")[..., None]) for n in range(3)}
    for number, prediction in expected.items():
        found = read_mask(tmp_path / "masks" / f"{number}.png")
        assert np.mean(found == prediction.pixels[..., 0]) > 0.99
    command("predict", str(preset), *flags, f"--output={tmp_path / 'restored'}")
    command("predict", str(preset), str(data / "png-images"), "--engine=keras", f"--output={tmp_path / 'png-restored'}")
    for number in range(3):
        restored = np.load(tmp_path / "restored" / f"{number}.npy")
        assert restored.shape == (20, 24, 1) and restored.dtype == np.uint8
        assert np.array_equal(restored, read_image(tmp_path / "png-restored" / f"{number}.png").pixels)

    # On a cluster, and on the page
    command("predict", str(run), *flags, f"--output={tmp_path / 'bulk'}", "--ray")
    for number in range(3):
        name = f"{number}.png"
        assert (tmp_path / "bulk" / name).read_bytes() == (tmp_path / "masks" / name).read_bytes()
    code = "import sys; from pathlib import Path\nfrom dl_techniques.inference.predictor import Predictor\n"
    code += "from dl_techniques.page.applying import apply_model\nmodel, source, folder = map(Path, sys.argv[1:])\n"
    code += "print(apply_model(Predictor(model, engine='keras'), source, folder, 10_000).download)"
    shown = python("-c", code, str(run), str(data / "images" / "1.npy"), str(tmp_path)).splitlines()[-1]
    assert np.array_equal(read_mask(Path(shown)), read_mask(tmp_path / "masks" / "1.png"))


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
