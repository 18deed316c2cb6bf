"""The backend of Keras, chosen before it is imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from dl_techniques.engines.formats import EngineName, Precision
from dl_techniques.errors import ConvUNextError

if TYPE_CHECKING:
    from dl_techniques.engines.selection import Choice

Backend = Literal["tensorflow", "jax", "torch"] | None


def choose_backend_for(model: str, backend: Backend) -> None:
    """Choose the backend if the model needs Keras; a machine that runs exported artifacts may have none."""
    from dl_techniques.engines.selection import needs_keras

    if needs_keras(model):
        choose_backend(backend)


def settle_engine(model: str, engine: EngineName, precision: Precision, backend: Backend) -> Choice:
    """Choose what runs a model and say it in a line; import Keras only if that is it.

    Args:
        model: A `.keras` file, a run's folder, a preset's name or folder, or an export.
        engine: What the user asked for. A backend that is named means Keras.
        precision: What OpenVINO shall compute in.
        backend: What Keras runs on.

    Returns:
        What `load_engine` takes in the place of the model, so that nothing is chosen or looked at twice.

    Raises:
        ConvUNextError: The engine is not installed or does not fit.
    """
    from dl_techniques.engines.runtimes import deviation
    from dl_techniques.engines.selection import choose_engine, needs_keras

    if engine == "auto" and backend is not None and precision == "float32" and needs_keras(model):
        engine = "keras"
    choice = choose_engine(model, engine, precision)
    said = choice.said
    if precision != "float32":
        network = choice.path if choice.conversion is None else choice.conversion.folder / "network.xml"
        share = deviation(network, precision)
        said += f"; {precision}: off by up to {share:.2%} of the range of the output on noise"
    if said:
        print(said, flush=True)
    if choice.runtime in ("keras", "litert", "tensorflow"):
        choose_backend(backend)
    return choice


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
        extra = {"jax": "jax", "torch": "torch"}.get(str(error.name), "")
        known = f"Install it: pip install 'convunext[{extra}]'."
        remedy = known if extra else "Without it, only models exported as .onnx or .xml run."
        raise ConvUNextError("backend", f"needs the module {error.name!r}, which is not installed.", remedy) from error


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what C++ code writes while TensorFlow starts: five lines that look like errors and are none."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
