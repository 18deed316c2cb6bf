"""What all tests share: quiet backends, a fixed seed, small models away from their initial weights."""

import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from hypothesis import settings

from dl_techniques.engines.loading import Engine, load_engine
from models import DENOISER, randomize, small_model

# Shells let what runs in their background ignore Ctrl-C, and its children with it; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first call on a new image size compiles. No database: runs are the same everywhere.
# JAX compiles every operation anew for every size, seconds each, and so tries fewer.
EXAMPLES = 4 if keras.backend.backend() == "jax" else 12
settings.register_profile("convunext", deadline=None, database=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("convunext")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of conversions of the tests' own: never the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVUNEXT_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    """A small random denoiser for grey images, saved as a preset."""
    model = small_model(input_shape=(None, None, 1), **DENOISER)
    randomize(model)
    folder = tmp_path_factory.mktemp("presets") / "small"
    model.save_to_preset(folder, {"task": "denoise"})
    return folder


@pytest.fixture(scope="session")
def engine(preset) -> Engine:
    return load_engine(preset)
