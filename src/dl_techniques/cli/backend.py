"""Selects the backend of Keras before it is imported, and what runs a model."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from dl_techniques.engines.formats import FORMATS, RUNTIMES, EngineName, Precision
from dl_techniques.errors import ConvUNextError, pip_install

if TYPE_CHECKING:
    from dl_techniques.engines.selection import EngineSelection

Backend = Literal["tensorflow", "jax", "torch"] | None


def prepare_engine(
    model: str,
    backend: Backend,
    engine: EngineName | None = None,
    precision: Precision = "float32",
    trust: bool = False,
) -> EngineSelection:
    """Select what runs a model, print it in a line, and import Keras only if that is it.

    Args:
        model: A `.keras` file, a run's folder, a preset's name or folder, or an export.
        backend: What Keras runs on. One that is named means Keras.
        engine: What the user asked for; Keras, without a line, if not given.
        precision: What OpenVINO shall compute in.
        trust: Whether exports are loaded that nobody vouches for.

    Returns:
        What `load_engine` takes in the place of the model, so that nothing is selected or read twice.

    Raises:
        ConvUNextError: The engine is not installed or does not fit.
    """
    from dl_techniques.engines.loading import precision_deviation
    from dl_techniques.engines.selection import find_model, select_engine

    if engine == "auto" and backend is not None and precision == "float32" and find_model(model)[1] is None:
        engine = "keras"
    selection = select_engine(model, engine, precision, trust)
    message = selection.message
    if precision != "float32":
        share = precision_deviation(selection)
        message += f"; {precision}: off by up to {share:.2%} of the range of the output on noise"
    if message:
        print(message, flush=True)
    if selection.starts_keras:
        choose_backend(backend)
    return selection


def choose_backend(backend: str | None) -> None:
    """Import Keras on a backend; on that of KERAS_BACKEND, or TensorFlow, if not given.

    Raises:
        ConvUNextError: The backend is not installed.
    """
    if backend is not None:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _quiet_stderr():
            import keras

            if keras.backend.backend() != "tensorflow":
                with contextlib.suppress(ImportError):
                    import tensorflow  # noqa: F401 - Keras imports it later, aloud
    except ModuleNotFoundError as error:
        free = [row.suffix for row in FORMATS.values() if not RUNTIMES[row.runtime].starts_keras]
        remedy = f"Without it, only models exported as {' or '.join(free)} run."
        if error.name in ("jax", "torch"):
            remedy = f"Install it: {pip_install(error.name)}."
        raise ConvUNextError("backend", f"needs the module {error.name!r}, which is not installed.", remedy) from error


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what C++ code writes while TensorFlow starts: five lines that look like errors and are none."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
