"""What computes is chosen, said, converted once and kept, and gives the numbers of Keras."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from dl_techniques.cli import main
from dl_techniques.engines import cache as conversions
from dl_techniques.engines import openvino as runtimes
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.openvino import openvino_core
from dl_techniques.engines.selection import select_engine
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.memory import plan_tile, tile_bytes
from dl_techniques.inference.network import Network
from dl_techniques.inference.predictor import Predictor
from models import DENOISER, image, saved

# The other engines are the same on every backend of Keras.
pytestmark = pytest.mark.only_backend("tensorflow")

GREY = {"input_shape": (None, None, 1)}
SMALL_HALO = {"stem_kernel_size": 3, "block_kernel_size": 3}  # few tiles fill an image
KINDS = {
    "v2": {**GREY, "output_channels": 3, "final_activation": "softmax", **SMALL_HALO},
    "v1": {"convnext_version": "v1", "output_channels": 1, "final_activation": "sigmoid", "downsample": "conv"},
    "denoiser": {**GREY, **DENOISER},
    "v2 without bias": {**GREY, "use_bias": False, "enable_deep_supervision": True},
    "batch norm": {**GREY, "use_bias": False, "equivariant_block": "batchnorm", "convnext_version": "v1"},
    "half precision": {**GREY, "use_bias": False, "dtype": "mixed_float16", "convnext_version": "v1"},
    "fixed size": {"input_shape": (24, 40, 3), "convnext_version": "v1"},
}
SEGMENTER = {
    "task": "segment",
    "classes": [{"name": name, "mask_value": value} for value, name in enumerate(("dark", "grey", "bright"))],
    "ignored_mask_values": [],
    "every_other_value_is_foreground": False,
    "normalization": "standardize",
    "training": {"patch": 64},
}


def off(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference by the range of what is expected, that of a single pixel being its magnitude."""
    return float(np.abs(actual - expected).max() / (np.ptp(expected) or np.abs(expected).max()))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, arguments in KINDS.items():
        (folder / name).mkdir()
        paths[name] = saved(folder / name, SEGMENTER if name == "v2" else {"task": "denoise"}, **arguments)
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_openvino_gives_the_numbers_of_keras(models, kind):
    reference, engine = load_engine(models[kind]), load_engine(models[kind], "openvino")
    assert engine.runtime == "openvino" and engine.model is None and engine.channels == reference.channels
    limit = 5e-3 if kind == "half precision" else 1e-4  # Keras itself is that far off in half precision
    sizes = [(24, 40)] if kind == "fixed size" else [(1, 1), (33, 47), (64, 64), (33, 47)]
    for size in sizes:
        for batch in (1, 2):
            x = image(batch, *size, engine.channels)
            y = engine.function(x)
            assert y.dtype == np.float32 and off(y, reference.function(x)) <= limit


def test_openvino_is_compiled_for_large_sizes_and_for_small_ones_that_come_again(models, monkeypatch):
    monkeypatch.setattr(runtimes, "SIZED", 30 * 40)
    monkeypatch.setattr(runtimes, "COMPILED", 3)
    made, make = [], runtimes.OpenVINOFunction._compile
    monkeypatch.setattr(
        runtimes.OpenVINOFunction, "_compile", lambda self, shapes: made.append(shapes) or make(self, shapes)
    )
    network = runtimes.OpenVINOFunction(conversions.convert(models["denoiser"], "openvino").folder / "network.xml")

    def compiled(height: int, width: int) -> list[tuple]:
        made.clear()
        network(image(1, height, width, 1))
        return [shapes[0][1:3] if shapes else () for shapes in made]

    assert compiled(20, 20) == [(20, 20)]  # the first
    assert compiled(30, 40) == [(30, 40)]  # large
    assert compiled(20, 24) == [()] and compiled(20, 28) == []  # small, and came once
    assert compiled(20, 24) == [(20, 24)] and compiled(20, 20) == []
    assert compiled(40, 40) == [(40, 40)]  # instead of the one that was not used for longest
    assert compiled(20, 20) == [] and compiled(30, 40) == [(30, 40)]


def test_openvino_computes_images_of_a_batch_one_by_one_unless_small(models, monkeypatch):
    network = runtimes.OpenVINOFunction(conversions.convert(models["v2"], "openvino").folder / "network.xml")
    shapes, compute = [], runtimes._outputs
    monkeypatch.setattr(
        runtimes, "_outputs", lambda compiled, arrays: shapes.append(arrays[0].shape[:3]) or compute(compiled, arrays)
    )
    large, small = image(3, 128, 136, 1), image(3, 32, 32, 1)
    (together,), (few,) = network(large), network(small)
    assert shapes == [(1, 128, 136)] * 3 + [(3, 32, 32)]
    assert together.shape[:3] == (3, 128, 136) and few.shape[:3] == (3, 32, 32)
    for index in range(3):
        assert (together[index] == network(large[index : index + 1])[0][0]).all()


def test_openvino_keeps_memory_for_the_last_size_alone(models):
    network = runtimes.OpenVINOFunction(conversions.convert(models["v2"], "openvino").folder / "network.xml")

    def resident(*size: int) -> int:
        network(np.zeros((1, *size, 1), "float32"))
        return psutil.Process().memory_info().rss

    few = resident(20, 20)
    kept = resident(2048, 2048) - few
    assert kept > 3e8  # not taken anew for each image
    assert resident(20, 20) - few < 0.6 * kept


def test_tiles_stay_within_the_estimated_memory_for_any_size(models):
    for kind in ("v2", "denoiser"):
        network = Network(load_engine(models[kind], "openvino"))
        least, sides = tile_bytes(network, network.smallest_tile), []
        for memory in np.geomspace(least, 1e9, 30).astype(int):
            sides.append(plan_tile(network, int(memory), 10**6))
            assert tile_bytes(network, sides[-1]) <= memory
        assert sides == sorted(sides) and sides[-1] > 512
        with pytest.raises(ArgumentError, match="must leave"):
            plan_tile(network, least // 2, 10**6)


def test_openvino_has_norms_as_operations_of_its_own(models):
    folder = conversions.convert(models["v2"], "openvino").folder
    kinds = [operation.get_type_name() for operation in openvino_core().read_model(folder / "network.xml").get_ops()]
    blocks = kinds.count("GroupConvolution")
    assert blocks >= 3 and kinds.count("MVN") == blocks + 1  # one in the stem
    assert kinds.count("ReduceL2") == 2 * blocks  # rows, and over them


@pytest.mark.parametrize("kind", ["v2", "denoiser"])
def test_onnx_runtime_gives_the_numbers_of_keras(models, kind):
    reference, engine = load_engine(models[kind]), load_engine(models[kind], "onnxruntime")
    assert engine.runtime == "onnxruntime"
    for size in ((1, 1), (33, 47), (64, 64)):
        x = image(2, *size, engine.channels)
        assert off(engine.function(x), reference.function(x)) <= 1e-4


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["v2", "denoiser"])
def test_tiles_of_other_engines_give_the_whole_image(models, kind, runtime):
    reference, engine = load_engine(models[kind]), load_engine(models[kind], runtime)
    x = image(203, 171, 1)
    whole = reference.function(x[None])[0]
    tiled, passes = Network(engine).apply(x, 144)
    assert off(tiled, whole) <= 1e-4
    assert passes[0].tiles >= 4 and (len(passes) > 1) == (kind == "v2")
    _, exact = Network(reference).apply(x, 144)
    assert [done.tiles for done in passes] == [done.tiles for done in exact]


def test_classes_are_those_of_keras(models):
    pixels = (255 * image(150, 130, 1)).astype("uint8")
    for settings in ({}, {"tile": 112}, {"global_stats": "tile"}, {"tta": 4}):
        expected, found = (Predictor(models["v2"], engine=name, **settings)(pixels) for name in ("keras", "auto"))
        assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-4
        assert np.mean(found.pixels != expected.pixels) <= 1e-4


def test_a_network_on_another_engine_is_planned_like_that_of_keras(models):
    for kind in ("v2", "denoiser"):
        expected, found = (Network(load_engine(models[kind], name)) for name in ("keras", "openvino"))
        for fact in ("halo", "multiple", "pools", "whole_images_only", "outputs", "smallest_tile"):
            assert getattr(found, fact) == getattr(expected, fact)


def command(*arguments: str, cwd: Path, code: str = "") -> subprocess.CompletedProcess:
    run = (
        f"import sys; from dl_techniques.cli import main; status = main({list(arguments)!r}); {code}; sys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", run], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_cached_conversion_needs_no_framework(models, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path / "cache"))
    write_image(tmp_path / "a.png", Picture((255 * image(40, 50, 1)).astype("uint8")))
    listed = "print([n for n in ('keras', 'tensorflow', 'jax', 'torch') if n in sys.modules])"
    for output, converts in (("1.png", True), ("2.png", False)):
        done = command("predict", str(models["v2"]), "a.png", "-o", output, cwd=tmp_path, code=listed)
        assert done.returncode == 0 and not done.stderr, done.stderr
        said, *_, loaded = done.stdout.splitlines()
        assert said.startswith(f"engine: openvino {importlib.metadata.version('openvino')}") and loaded == "[]"
        assert ("converted from model.keras in" in said and str(tmp_path / "cache") in said) == converts
    assert np.array_equal(read_image(tmp_path / "1.png").pixels, read_image(tmp_path / "2.png").pixels)
    assert [entry.name[:9] for entry in (tmp_path / "cache").iterdir()] == ["openvino-"]


def test_conversions_import_only_what_they_use():
    code = """
import sys
from dl_techniques.engines.subprocess import exit_status_of

def work():
    import keras
    assert not {"jax", "matplotlib", "pandas", "scipy.stats", "tensorflow", "torch"} & sys.modules.keys()
    import scipy.signal
    assert len(scipy.signal.get_window("hann", 8)) == 8  # there once it is used

sys.exit(exit_status_of(work))
"""
    environment = {**os.environ, "KERAS_BACKEND": "openvino"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


LISTENER = """
import os, sys

def heard(event, arguments):
    if event in ("os.fork", "socket.connect", "socket.getaddrinfo"):
        print(event, *arguments[1:], file=open(os.environ["HEARD"], "a"))

sys.addaudithook(heard)
"""


@pytest.mark.parametrize("command", ["predict", "export"])
def test_no_telemetry_is_sent(models, tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(LISTENER)  # every Python process of the command has it
    write_image(tmp_path / "image.tif", Picture(image(24, 32, 3)))
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # where telemetry rests
    environment |= {"HEARD": str(tmp_path / "heard"), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment["CONVUNEXT_CACHE"] = str(tmp_path / "cache")
    words = {"predict": [str(tmp_path / "image.tif"), "--engine", "openvino"], "export": ["--format", "openvino"]}
    output = str(tmp_path / ("out" if command == "predict" else "model.xml"))
    program = [sys.executable, "-m", "dl_techniques.cli", command, str(models["v1"]), *words[command], "-o", output]
    subprocess.run(program, env=environment, check=True, timeout=300, capture_output=True)
    assert not (tmp_path / "heard").exists(), (tmp_path / "heard").read_text()


def test_ctrl_c_interrupts_after_models_on_openvino_are_deleted(models, tmp_path):
    """Each core of OpenVINO gives the thread another stack for signals, and takes back what is freed already."""
    load = f"engines = [load_engine({str(models['denoiser'])!r}, 'openvino') for _ in range(2)]"
    run = "[engine.function(np.zeros((1, 8, 8, 1), 'float32')) for engine in engines]; del engines[0]; del engines[0]"
    code = "import signal, numpy as np; from dl_techniques.engines.loading import load_engine; "
    code += f"{load}; {run}; signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stderr.strip().endswith("KeyboardInterrupt"), (done.returncode, done.stderr)


def test_damaged_conversion_is_made_again(models, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path))
    choice = select_engine(models["denoiser"], "openvino")
    assert (
        choice.conversion.seconds is not None and select_engine(models["denoiser"], "auto").conversion.seconds is None
    )
    weights, x = choice.conversion.folder / "network.bin", image(1, 9, 9, 1)
    expected = load_engine(models["denoiser"], "openvino").function(x)
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:-100]), weights.unlink,
                   lambda: (choice.conversion.folder / conversions.FACTS).write_text("{")):  # fmt: skip
        damage()
        assert conversions.find_conversion(models["denoiser"], "openvino") is None
        assert np.array_equal(load_engine(models["denoiser"], "openvino").function(x), expected)
        assert conversions.find_conversion(models["denoiser"], "openvino") is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_changed_model_is_converted_again(models, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(models["denoiser"].read_bytes())
    before = select_engine(path, "openvino").conversion.folder
    path.write_bytes(models["batch norm"].read_bytes())
    assert select_engine(path, "openvino").conversion.folder != before


def test_without_a_cache_it_works_and_says_so(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path / "file" / "cache"))
    choice = select_engine(models["denoiser"], "auto")
    assert "not cached: writing failed" in choice.message
    again = select_engine(models["denoiser"], "auto").conversion
    assert again.folder == choice.conversion.folder and again.seconds is None and not again.cached
    assert load_engine(models["denoiser"], "auto").function(image(1, 9, 9, 1)).shape == (1, 9, 9, 1)


def chosen_without(modules: list[str], model: Path, *settings: str) -> subprocess.CompletedProcess:
    """Choose where modules are missing, and print what is said."""
    load = "from dl_techniques.engines.selection import select_engine"
    run = f"import sys; sys.modules.update(dict.fromkeys({modules})); {load}; "
    run += f"print(select_engine(*{(str(model), *settings)!r}).message)"
    return subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=300)


def test_auto_takes_onnx_runtime_where_openvino_is_not_and_says_so(models, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path))
    lacking = "openvino is not installed (pip install 'convunext[openvino]')"
    done = chosen_without(["openvino"], models["denoiser"], "auto")
    assert done.stdout.startswith(f"engine: onnxruntime {importlib.metadata.version('onnxruntime')}; converted from")
    assert done.stdout.strip().endswith(f"; {lacking}")
    again = chosen_without(["openvino"], models["denoiser"], "auto")
    assert again.stdout.strip() == f"engine: onnxruntime {importlib.metadata.version('onnxruntime')}; {lacking}"
    for gone, said in (
        ("onnxruntime", "onnxruntime is not installed (pip install 'convunext[onnx]')"),
        ("tf2onnx", "onnxruntime needs tf2onnx, which is not installed (pip install 'convunext[onnx]')"),
    ):
        done = chosen_without(["openvino", gone], models["denoiser"], "auto")
        assert done.stdout.strip() == f"engine: keras; {lacking}; {said}"
    done = chosen_without(["openvino"], models["denoiser"], "auto", "bfloat16")
    assert f"`precision` must be float32: {lacking}" in done.stderr


def test_engine_is_chosen_once_a_command(models, tmp_path, monkeypatch, capfd):
    read, digest = [], conversions.file_digest
    monkeypatch.setattr(conversions, "file_digest", lambda path: read.append(path) or digest(path))
    write_image(tmp_path / "a.png", Picture((255 * image(30, 20, 1)).astype("uint8")))
    model, picture = models["denoiser"], str(tmp_path / "a.png")
    for arguments in (["predict", str(model), picture], ["denoise", picture, "--model", str(model), "--no-inspect"]):
        select_engine(model, "auto")  # converted
        read.clear()
        assert main([*arguments, "-o", str(tmp_path / f"{arguments[0]}.png")]) == 0
        assert read.count(model) == 1 and capfd.readouterr().out.count("engine: openvino") == 1


def test_denoiser_is_the_one_that_the_images_take(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path / "cache"))
    for name, channels in (("grey", 1), ("colour", 3)):
        write_image(tmp_path / f"{name}.png", Picture((255 * image(24, 20, channels)).astype("uint8")))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    inputs = {name: str(tmp_path / f"{name}.png") for name in ("grey", "colour", "broken")}
    said = []
    for names, converted in ((["colour"], 1), (["broken", "grey"], 2), (["grey", "colour"], 2)):
        output = tmp_path / "-".join(names)
        status = main(["denoise", *[inputs[name] for name in names], "-o", str(output) + ".tif"])
        assert status == ("broken" in names)
        said.append([line for line in capfd.readouterr().out.splitlines() if line.startswith("engine: ")])
        assert len(list((tmp_path / "cache").iterdir())) == converted
    assert ["converted from denoise-color" in said[0][0], "converted from denoise-gray" in said[1][0]] == [True, True]
    assert [len(lines) for lines in said] == [1, 1, 2]


def test_auto_falls_back_to_keras_and_says_why(models, tmp_path, monkeypatch):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(models["denoiser"].read_bytes()[:3000])
    choice = select_engine(broken, "auto")
    assert choice.runtime == "keras" and choice.message.startswith("engine: keras; openvino cannot be used: ")
    with pytest.raises(FileError, match="cannot be converted for openvino: .* Add --engine keras"):
        select_engine(broken, "openvino")
    done = chosen_without(["openvino"], broken, "auto")
    assert done.stdout.startswith(
        "engine: keras; openvino is not installed (pip install 'convunext[openvino]'); onnxruntime cannot "
    )


def test_engines_that_do_not_fit_are_refused(models, tmp_path, capfd):
    with pytest.raises(ArgumentError, match="one of auto, keras, openvino, onnxruntime. Received: engine='jax'"):
        load_engine(models["v1"], "jax")
    artifact = tmp_path / "a.onnx"
    artifact.write_bytes(b"")
    with pytest.raises(ArgumentError, match="must be onnxruntime for a.onnx, .* Leave --engine out"):
        load_engine(artifact, "openvino")
    with pytest.raises(ArgumentError, match="must be float32: only openvino has another"):
        load_engine(models["v1"], "onnxruntime", "bfloat16")
    with pytest.raises(ArgumentError, match="must be one of float32, bfloat16"):
        load_engine(models["v1"], "openvino", "float16")
    assert main(["predict", str(models["v1"]), "a.png", "-o", "b.png", "--engine", "tensorflow"]) == 2
    assert "Error" in "".join(capfd.readouterr())
    done = chosen_without(["onnxruntime"], models["v1"], "onnxruntime")
    assert "needs the module 'onnxruntime', which is not installed" in done.stderr
    assert "pip install 'convunext[onnx]', or add --engine keras." in done.stderr


def test_keras_is_what_it_was(models, tmp_path, capfd):
    write_image(tmp_path / "a.png", Picture((255 * image(30, 20, 1)).astype("uint8")))
    for flags in (["--engine", "keras"], ["--backend", "tensorflow"]):
        output = tmp_path / f"{flags[1]}.png"
        assert main(["predict", str(models["denoiser"]), str(tmp_path / "a.png"), "-o", str(output), *flags]) == 0
        assert capfd.readouterr().out.splitlines()[0] == "engine: keras"
    assert load_engine(models["denoiser"]).runtime == "keras"


def has_bfloat16() -> bool:
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_bfloat16_is_refused_where_unsupported_and_reported_where_supported(models, tmp_path, capfd):
    write_image(tmp_path / "a.png", Picture((255 * image(30, 20, 1)).astype("uint8")))
    arguments = ["denoise", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--precision", "bfloat16"]
    status = main([*arguments, "--model", str(models["denoiser"])])
    output = capfd.readouterr()
    if has_bfloat16():
        assert status == 0 and "bfloat16: off by up to" in output.out
    else:
        assert status == 2 and "must be float32: " in output.err and "has no bfloat16" in output.err
        assert not (tmp_path / "b.png").exists()


def test_unused_conversions_are_removed(models, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVUNEXT_CACHE", str(tmp_path))
    for name, days in (("old", conversions.UNUSED_DAYS + 1), ("new", 1)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, conversions.time.time() - 86400 * days))
    select_engine(models["v1"], "openvino")
    assert sorted(path.name[:4] for path in tmp_path.iterdir()) == ["new", "open"]
