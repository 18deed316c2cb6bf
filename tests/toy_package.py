"""A copy of the package to which a test adds a toy, and commands of that copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import dl_techniques

PACKAGE = Path(dl_techniques.__file__).parent
# Several commands share a process, and what it takes to start one; steps are few, and not traced.
SCRIPT = """
import contextlib, io, json, os, sys
import tensorflow
from dl_techniques.cli import main

tensorflow.config.run_functions_eagerly(True)

results = []
for words in json.loads(sys.argv[1]):
    if words[0] == "rm":
        os.remove(words[1])
        continue
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(words)
    results.append([status, output.getvalue(), errors.getvalue()])
with open("results.json", "w") as file:
    json.dump(results, file)
"""


class Result(NamedTuple):
    """What a command returned and printed."""

    status: int
    output: str
    errors: str


def copy_package(folder: Path) -> Path:
    """Return the copy of the package in a folder, which is to be the first on the path."""
    return shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))


def run_script(copy: Path, folder: Path, script: str, *arguments: str) -> str:
    """Run Python with a copy of the package in a process of its own and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    words = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_commands(copy: Path, folder: Path, *commands: list[str]) -> list[Result]:
    """Run commands of a copy of the package, one after the other in one process, and return their results.

    `["rm", FILE]` among them removes a file, and has no result.
    """
    run_script(copy, folder, SCRIPT, json.dumps(commands))
    return [Result(*result) for result in json.loads((folder / "results.json").read_text())]
