"""What all tests share: which backends a test is for, who runs it and when, a fixed seed, small models.

A test runs once, on TensorFlow, unless a mark says otherwise: `each_backend` on every backend, `only_backend(name)` on
that one. Nothing here imports Keras before a test needs it.
"""

import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# What JAX compiled is kept from run to run, beside pytest's own notes; processes that tests start use it, too.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Shells let what runs in their background ignore Ctrl-C, and its children with it; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first call on a new image size compiles. No database: runs are the same everywhere.
# JAX compiles every operation anew for every size, seconds each, and so tries fewer.
EXAMPLES = 4 if BACKEND == "jax" else 12
settings.register_profile("convunext", deadline=None, database=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("convunext")


# === Which tests run, and where ===

# Processes that share the tests (`-n 2`) take them file by file, in this order and then by name. Files that start
# servers, clusters or several processes are one group, so that they never compete with each other; the longest come
# first, so that both processes end at about the same time.
PROCESSES = ("test_devices", "test_bulk", "test_page", "test_browser")
LONGEST = (
    "processes", "test_engines", "test_denoising", "test_export", "test_docs", "test_run_folder", "test_speed",
    "test_saving", "test_lifecycle", "test_predict", "test_runtime", "test_training", "test_equivariance",
    "test_large_exports", "test_custom_gradients", "test_parts", "test_trained_tiles", "test_segmentation",
    "test_artifact", "test_toy_format", "test_cli", "test_model", "test_inference", "test_toy_task", "test_toy_export",
)  # fmt: skip
# What `make check` has no time for (`--quick`), beside the tests marked slow: left out before anything is imported.
SLOW = {
    "test_artifact", "test_bad_models", "test_benchmarks", "test_browser", "test_bulk", "test_certify", "test_cli",
    "test_custom_gradients", "test_denoising", "test_devices", "test_docs", "test_engines", "test_equivariance",
    "test_export", "test_inference", "test_large", "test_large_exports", "test_lifecycle", "test_one_open",
    "test_page", "test_parts", "test_precision", "test_predict", "test_quantize", "test_restoration",
    "test_run_folder", "test_runtime", "test_saving", "test_segmentation", "test_specification", "test_speed",
    "test_toy_export", "test_toy_format", "test_toy_task", "test_trained_tiles", "test_training", "test_trust",
}  # fmt: skip


def group_of(nodeid: str) -> str:
    file = Path(nodeid.partition("::")[0]).stem
    return "processes" if file in PROCESSES else file


def place_of(item: pytest.Item) -> int:
    group = group_of(item.nodeid)
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


def is_wanted(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("only_backend")
    here = mark is None or BACKEND in mark.args
    return here and not (item.config.option.quick and item.get_closest_marker("slow"))


def pytest_ignore_collect(collection_path, config):
    return True if config.option.quick and collection_path.stem in SLOW else None


def pytest_collection_modifyitems(config, items):
    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = sorted(filter(is_wanted, items), key=place_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out the tests that take long")
    parser.addoption("--strict-skips", action="store_true", help="fail if a test is skipped for a reason of no list")


# === Skips ===

# The reasons for which a test may be skipped where nothing may be missing (`--strict-skips`, as .ci/run says).
ALLOWED_SKIPS = {
    "the specification is not beside the checkout": "it belongs to another repository",
    "the orders in memory are those of processors with AVX-512": "a property of the processor",
}
skips: list[str] = []


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in ALLOWED_SKIPS:
            skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session):
    if skips and session.config.option.strict_skips and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if skips and config.option.strict_skips:
        terminalreporter.section("skipped for a reason that is not in ALLOWED_SKIPS", red=True)
        for line in skips:
            terminalreporter.write_line(line)


# === Fixtures ===


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of conversions of the tests' own: never the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVUNEXT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def eager():
    """Trainings of few steps, without the seconds in which TensorFlow traces each: `usefixtures("eager")`."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)
    else:
        yield


@pytest.fixture
def traced(eager):
    """A training of so many steps that tracing pays, among others that are not traced."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(False)
        yield
        tf.config.run_functions_eagerly(True)
    else:
        yield


@pytest.fixture(autouse=True)
def fixed_seed():
    random.seed(7)
    np.random.seed(7)
    if "keras" in sys.modules:  # which else takes its seeds from these
        sys.modules["keras"].utils.set_random_seed(7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    """A small random denoiser for grey images, saved as a preset."""
    from models import DENOISER, randomize, small_model

    model = small_model(input_shape=(None, None, 1), **DENOISER)
    randomize(model)
    folder = tmp_path_factory.mktemp("presets") / "small"
    model.save_to_preset(folder, {"task": "denoise"})
    return folder


@pytest.fixture(scope="session")
def engine(preset):
    from dl_techniques.engines.loading import load_engine

    return load_engine(preset)
