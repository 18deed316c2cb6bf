"""A new export format is one module and one row of `engines/formats.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dl_techniques.engines.formats import FORMATS, RUNTIMES, SUFFIXES
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.predictor import Predictor
from models import DENOISER, image, saved
from toy_package import PACKAGE, copy_package, run_commands

MODULE = '''
"""A network as its configuration and weights in one NumPy file."""

import json

import numpy as np

from dl_techniques.engines.engine import Graph


def write_npzm(model, path):
    from dl_techniques.models.convunext.model import ConvUNextModel

    (network,) = (layer for layer in model.layers if isinstance(layer, ConvUNextModel))
    weights = {str(number): weight for number, weight in enumerate(network.get_weights())}
    with open(path, "wb") as file:
        np.savez(file, config=json.dumps(network.get_config()), **weights)


def load_npzm(path, precision):
    from dl_techniques.models.convunext.function import keras_function
    from dl_techniques.models.convunext.model import ConvUNextModel

    with np.load(path) as stored:
        network = ConvUNextModel.from_config(json.loads(str(stored["config"])))
        network.set_weights([stored[str(number)] for number in range(len(network.weights))])
    function = keras_function(network)
    return Graph([None, None, None, network.input_channels], lambda x: [function(x)])
'''
ROWS = "FORMATS = {row.name: row for row in (\n"
ROW = """    ArtifactFormat(name="npzm", title="NumPy", suffix=".npzm", runtime="keras", loader="npzm:load_npzm",
                   writer="npzm:write_npzm"),
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package that has one more format."""
    package = copy_package(tmp_path_factory.mktemp("package"))
    engines = package / "engines"
    (engines / "npzm.py").write_text(MODULE)
    table = (engines / "formats.py").read_text()
    assert table.count(ROWS) == 1
    (engines / "formats.py").write_text(table.replace(ROWS, ROWS + ROW))
    return package


def test_a_format_is_a_module_and_a_row(package, tmp_path):
    source = saved(tmp_path, {"task": "denoise"}, input_shape=(None, None, 1), **DENOISER)
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", Picture(np.uint8(255 * image(40, 50, 1, seed=number))))
    refused, *done = run_commands(
        package,
        tmp_path,
        ["export", str(source), "-o", "a.npzm", "--tiles"],
        ["export", str(source), "-o", "model.npzm"],
        ["certify", "model.npzm"],
        ["predict", "model.npzm", "in", "-o", "toy", "--max-memory", "8MB"],
        ["predict", "model.npzm", "in", "-o", "ray", "--ray"],
    )
    assert refused.status == 2 and "needs an --output that ends in .onnx or .xml" in refused.errors
    assert [result.status for result in done] == [0] * 4, done
    exported, certified, _, bulk = (result.output for result in done)
    assert exported.strip().endswith("model.npzm") and "scale-equivariance holds" in certified
    assert "3 of 3 images done" in bulk
    for number in range(3):
        pixels = read_image(tmp_path / "in" / f"{number}.png").pixels
        expected = Predictor(source)(pixels).pixels.astype(int)
        for folder in ("toy", "ray"):
            assert np.abs(read_image(tmp_path / folder / f"{number}.png").pixels - expected).max() <= 1


# === The table is the only one ===


def constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings of a file that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(statement.value) for statement in first if isinstance(statement, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "engines" / "formats.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_names_suffixes_or_lists_runtimes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for constant in constants(tree):
        assert not any(suffix in constant.value for suffix in SUFFIXES), constant.value
    for node in ast.walk(tree):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = {item.value for item in items if isinstance(item, ast.Constant)}
        assert len(names & set(RUNTIMES)) < 2 and len(names & set(FORMATS)) < 2, names
