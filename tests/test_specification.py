"""Every Python block of the specification runs as it stands, where the specification is at hand."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPECIFICATION = ROOT.parent / "shared" / "SPECIFICATION.md"


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def is_signature(block: str) -> bool:
    """Tell whether a block is a function's head without a body, which no Python can execute."""
    return block.startswith("def ") and not block.rstrip().endswith(":") and "return" not in block


def run_specification() -> None:
    """Execute the blocks in order in one namespace and check what the text says of their results."""
    namespace: dict = {}
    blocks = python_blocks(SPECIFICATION)
    for block in blocks:
        if is_signature(block):
            check_signature(block, namespace["create_convunext_variant"])
            continue
        exec(compile(block, str(SPECIFICATION), "exec"), namespace)  # noqa: S102
        if "Number of outputs" in block:
            shapes = [tuple(output.shape) for output in namespace["outputs"]]
            assert shapes == [(2, size, size, 1) for size in (256, 128, 64, 32)], shapes
        if "denoise_model" in block:
            assert not namespace["denoise_model"].use_bias and namespace["denoise_model"].output_channels == 3
    assert len(blocks) == 5, len(blocks)
    assert namespace["inference_model"].enable_deep_supervision is False
    print("specification executed")


def check_signature(block: str, function) -> None:
    """Hold a function against the head that the specification prints: same names, order and defaults."""
    head = ast.parse(block.rstrip() + ": ...").body[0]
    assert isinstance(head, ast.FunctionDef) and head.name == function.__name__
    defaults = [ast.literal_eval(default) for default in head.args.defaults]
    names = [argument.arg for argument in head.args.args]
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters if p.kind is not p.VAR_KEYWORD] == names
    assert [p.default for p in parameters if p.default is not p.empty] == defaults
    assert head.args.kwarg is not None and any(p.kind is p.VAR_KEYWORD for p in parameters)


@pytest.mark.only_backend("tensorflow")  # the specification names it
@pytest.mark.skipif(not SPECIFICATION.exists(), reason="the specification is not beside the checkout")
def test_every_block_of_the_specification_runs():
    """In a process of its own: its models are large."""
    code = "import test_specification as t; t.run_specification()"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "specification executed" in result.stdout, result.stderr[-3000:]
