"""Work that Keras does on another backend than this process has, or without one here: in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from pathlib import Path

import dl_techniques
from dl_techniques.engines.openvino import import_openvino
from dl_techniques.errors import ConvUNextError

# What Keras and TensorFlow import if it is there and conversions do not use: most of the seconds of a small one.
NEEDLESS = ("jax", "matplotlib", "pandas", "torch")
LAZY = "scipy.signal"  # what Keras on OpenVINO cannot be imported without


class ConversionError(ConvUNextError):
    """Say why a model could not be converted."""


def run_in_subprocess(module: str, arguments: Sequence[str], backend: str, subject: str) -> None:
    """Run `python -m module arguments` on a backend of Keras and wait for its end; see `exit_status_of`.

    Raises `ConversionError`, of `subject`, if it ends with an error; the last line that it wrote is the reason.
    """
    command, environment = module_command(module, *arguments), module_environment(KERAS_BACKEND=backend)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ConversionError(subject, lines[-1] if lines else f"the conversion ended with {done.returncode}.")


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package, and looks for no module in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(**changes: str) -> dict[str, str]:
    """Return the environment of `module_command`, in which it finds this package and TensorFlow is quiet."""
    package = str(Path(dl_techniques.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path, **changes}


def exit_status_of(work: Callable[[], None]) -> int:
    """Do the work of a subprocess; return its exit status, and print why it failed as the last line of stderr."""
    on_openvino = os.environ.get("KERAS_BACKEND") == "openvino"
    sys.meta_path.insert(0, _Needless((*NEEDLESS, "tensorflow") if on_openvino else NEEDLESS))
    try:
        if on_openvino:
            import_openvino()  # before Keras imports it
        work()
        return 0
    except ConvUNextError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        reason = f"needs the module {error.name!r}, which is not installed."
    except Exception as error:  # the errors of converters have no class in common
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(reason, file=sys.stderr)
    return 1


class _Needless:
    """Lets modules count as not installed, and one be loaded when it is used.

    `None` in `sys.modules` would do for the former, but SciPy takes that for the module.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec = PathFinder.find_spec(name, path) if name == LAZY else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec
