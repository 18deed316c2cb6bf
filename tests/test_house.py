"""The house stands: floors, file sizes, imports that cost nothing until they are used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dl_techniques"
FILES = sorted(SOURCE.rglob("*.py"))

# A room may import from the floors below it and from itself; parts of a floor stand above those that they use.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "atomic": 0.1,
    "data_files": 0.15,
    "card": 0.2,
    "report": 0.1,
    "images": 1,
    "datasets": 1.5,
    "layers": 2,
    "losses": 2.5,
    "metrics": 2,
    "models": 3,
    "engines": 4,
    "tasks": 4,
    "inference": 5,
    "training": 6,
    "export": 7,
    "bulk": 7,
    "page": 7,
    "cli": 8,
}


def room_of(module: str) -> str:
    """Return the room of a module of the package: the first name below it."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def own_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dl_techniques"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names if name.name.startswith("dl_techniques"))
    return found


def name_of(path: Path) -> str:
    parts = ("dl_techniques", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_downwards_only(path):
    room = room_of(name_of(path))
    for module in own_imports(path):
        other = room_of(module)
        assert other == room or FLOORS[other] < FLOORS[room], f"{path.name} of {room} imports {module}"


def test_modules_import_in_no_circle():
    graph = {name_of(path).removesuffix(".__init__"): own_imports(path) for path in FILES}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        for other in graph.get(module, ()):
            if other != module:
                visit(other, (*trail, module))

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in ("utils", "helpers", "common", "misc")


KERAS_HAS_IT = SOURCE / "layers" / "openvino_graph.py"  # imported by the layers alone, where Keras runs on OpenVINO


def test_openvino_is_imported_in_one_way():
    """A plain `import openvino` reports to a web service, from a fork of the process, unless `CI` is set."""
    root = SOURCE.parents[1]
    files = [*FILES, *root.glob("tests/*.py"), *root.glob("benchmarks/*.py"), *root.glob("recipes/*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            plain = any(name.split(".")[0] == "openvino" for name in names)
            assert not plain or path == KERAS_HAS_IT, f"{path} imports openvino, not import_openvino()"


def test_a_process_has_one_core_of_openvino():
    """After two, a signal ends the process: `openvino_core` says why."""
    root = SOURCE.parents[1]
    files = [*FILES, *root.glob("tests/*.py"), *root.glob("benchmarks/*.py"), *root.glob("recipes/*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            makes = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Core"
            assert not makes or path == SOURCE / "engines" / "openvino.py", f"{path} makes a core, not openvino_core()"


def seconds(*command: str) -> float:
    """Return the least processor time of several runs of Python: what it takes, however busy the machine."""
    times = []
    for _ in range(7):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))  # of children, in and below the process
    return min(times)


LIST_BACKENDS = "import sys; print([m for m in ('keras', 'tensorflow', 'jax', 'torch', 'numpy') if m in sys.modules])"


def test_importing_the_package_loads_no_backend_and_takes_no_time():
    code = f"import dl_techniques; {LIST_BACKENDS}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert seconds("-c", "import dl_techniques") - seconds("-c", "pass") <= 0.1


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["--version"]])
def test_help_loads_no_backend_and_answers_at_once(arguments):
    code = f"from dl_techniques.cli import main; main({arguments!r}); {LIST_BACKENDS}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == "[]"
    assert seconds("-m", "dl_techniques.cli", *arguments) - seconds("-c", "pass") <= 0.5
