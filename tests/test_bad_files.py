"""Files that are made to do harm, or that may not be read: refused by name with a remedy, and nothing is left."""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from bad_images import samples
from dl_techniques.cli import main
from dl_techniques.cli.terminal import terminal
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.openvino import import_openvino
from dl_techniques.errors import ConvUNextError, FileError, WeightsError, printable
from dl_techniques.images.files import find_images
from models import DENOISER, image, randomize, run, saved, small_model

# === Files that may not be read ===


def unprivileged(*commands: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Run commands as one who may not read every file, which root may."""
    code = f"from dl_techniques.cli import main; print([main(arguments) for arguments in {commands!r}])"
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_files_and_folders_without_permission_are_named(preset, tmp_path):
    (tmp_path / "read-only").mkdir()
    for folder in ("photos", "closed"):
        (tmp_path / folder).mkdir()
        Image.fromarray(samples(16, 16)).save(tmp_path / folder / "a.png")
    Image.fromarray(samples(16, 16)).save(tmp_path / "photos" / "secret.png")
    (tmp_path / "secret.keras").write_bytes(b"")
    for name, mode in (("photos/secret.png", 0), ("secret.keras", 0), ("closed", 0), ("read-only", 0o555)):
        (tmp_path / name).chmod(mode)
    rest = ["--engine", "keras", "-o"]
    result = unprivileged(
        ["predict", str(preset), "photos", *rest, "out"],
        ["predict", str(preset), "closed", *rest, "out-2"],
        ["denoise", "closed/a.png", "--model", str(preset), *rest, "out-3"],
        ["predict", "secret.keras", "photos/a.png", *rest, "out-4"],
        ["predict", str(preset), "photos/a.png", *rest, "read-only"],
        ["predict", str(preset), "photos/a.png", *rest, "read-only/b.png"],
        cwd=tmp_path,
    )
    (tmp_path / "closed").chmod(0o700)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stdout.splitlines()[-1] == "[1, 2, 2, 2, 2, 2]", result.stdout + result.stderr
    (refused,) = [line for line in result.stdout.splitlines() if line.startswith("refused") and "secret.png" in line]
    assert "photos/secret.png: cannot be read: " in refused and "Permission denied" in refused
    for said in ("closed: cannot be read: Permission denied", "closed/a.png: ", "secret.keras: "):
        assert said in result.stderr
    assert result.stderr.count("read-only: cannot be written: Permission denied. Choose another --output.") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "out", "photos", "read-only", "secret.keras"]
    assert list((tmp_path / "read-only").iterdir()) == []


NAMES = [
    "two\nlines.png",
    "\x1b[31mred.png",
    "back\rspace.png",
    "\x9b2Jclear.png",
    "gnp.\u202ereversed.png",
    "not-utf8-\udcff.png",
    "[bold]bold.png",
    "[red]red[[].png",
    "<b>bold<b>.png",
    "'\" ;$(ls).png",
]


@pytest.mark.parametrize("command", ["predict", "denoise"])
def test_names_that_speak_to_the_terminal_are_printed_and_files_kept_as_they_are(command, preset, tmp_path, capfd):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in NAMES:
        Image.fromarray(samples(16, 16)).save(photos / name)
    broken = [f"broken-{name}" for name in NAMES]
    for name in broken:
        (photos / name).write_bytes(b"nothing")
    model = [str(preset)] if command == "predict" else []
    more = [] if command == "predict" else ["--model", str(preset), "--no-inspect"]
    assert main([command, *model, str(photos), "-o", str(output), "--engine", "keras", *more]) == 1
    out, err = capfd.readouterr()
    assert sorted(path.name for path in output.iterdir()) == sorted(NAMES)
    for name in NAMES:
        (done,) = [line for line in out.splitlines() if line.startswith(f"{photos}/{printable(name)} -> ")]
        assert printable(name) in done.split(" -> ")[1]
        assert any(line.startswith(f"refused  {photos}/broken-{printable(name)}: ") for line in out.splitlines())
    assert all(character == "\n" or character.isprintable() for character in out + err)
    assert len(list(tmp_path.iterdir())) == 2


def test_errors_name_files_in_one_line(tmp_path):
    with pytest.raises(FileError, match=r"a\\nb\\x1b\[2Jc: does not exist") as refused:
        find_images([tmp_path / "a\nb\x1b[2Jc"])
    assert "\n" not in str(refused.value) and refused.value.subject.endswith("a\nb\x1b[2Jc")
    assert printable("Ünï/日本 (2).png") == "Ünï/日本 (2).png"


def test_names_that_look_like_markup_are_printed_as_they_are(capfd):
    terminal().print("[/bold] is a class, [red]red[/red] another")
    assert capfd.readouterr().out == "[/bold] is a class, [red]red[/red] another\n"


# === Models of Keras ===


def part(module: str, class_name: str, /, **config) -> dict:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def around(layer: dict) -> dict:
    """Return the config of a model of one layer."""
    given = part("keras.layers", "InputLayer", batch_shape=[None, None, None, 1], dtype="float32", name="given")
    return part("keras", "Sequential", name="model", layers=[given, layer])


CODE = base64.b64encode(b"no code").decode()
LAMBDA = {"class_name": "__lambda__", "config": {"code": CODE, "defaults": None, "closure": None}}
HOSTILE_PARTS = {
    "Lambda": part("keras.layers", "Lambda", name="l", function=LAMBDA),
    "TFSMLayer": part("keras.layers", "TFSMLayer", name="t", filepath="/etc", call_endpoint="serve"),
    "TorchModuleWrapper": part(
        "keras.layers", "TorchModuleWrapper", module={"class_name": "__bytes__", "config": {"value": CODE}}
    ),
    "StringLookup": part("keras.layers", "StringLookup", name="s", vocabulary="/etc/passwd"),
    "os.system": part("os", "system", command="touch harmed"),
    "subprocess.Popen": {**part("subprocess", "Popen", args=["touch", "harmed"]), "registered_name": "Popen"},
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("good"), {"task": "denoise"}, input_shape=(None, None, 1), **DENOISER)


def members(model: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(model) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_model(path: Path, contents: dict[str, bytes], config: dict | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, json.dumps(config) if config is not None and name == "config.json" else content)
    return path


def refusal(path: Path, folder: Path, monkeypatch, capfd) -> str:
    """Return what the command says of a model that it must refuse, leaving nothing."""
    work = folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Image.fromarray(samples(16, 16)).save("a.png")
    assert main(["predict", str(path), "a.png", "-o", "out", "--engine", "keras"]) == 2
    said = capfd.readouterr().err.strip()
    assert "Traceback" not in said and path.name in said and said.count("\n") == 0
    assert "safe_mode" not in said  # Keras' advice is to trust the file
    assert [file.name for file in work.iterdir()] == ["a.png"]
    with pytest.raises(ConvUNextError) as refused:
        load_engine(path)
    assert refused.value.remedy
    return said


@pytest.mark.parametrize("where", ["whole", "layer", "inside", "deeper", "activation"])
@pytest.mark.parametrize("name", HOSTILE_PARTS)
def test_configs_that_name_other_classes_are_refused_before_they_are_built(
    name, where, good, tmp_path, monkeypatch, capfd
):
    contents, hostile = members(good), HOSTILE_PARTS[name]
    config = json.loads(contents["config.json"])
    if where == "whole":
        config = hostile
    elif where == "layer":
        config = around(hostile)
    elif where == "inside":
        config["config"]["kernel_initializer"] = hostile
    elif where == "deeper":
        config["config"]["kernel_regularizer"] = part("keras.regularizers", "L2", l2=[hostile])
    else:
        config["config"]["final_activation"] = hostile
    said = refusal(write_model(tmp_path / "bad.keras", contents, config), tmp_path, monkeypatch, capfd)
    assert (name if where != "layer" else "keras.Sequential") in said
    assert ("which is not allowed" in said) == (where in ("inside", "deeper", "activation"))
    assert "Load only model files that you trust" in said


@pytest.mark.parametrize("kind", ["weights", "config", "card", "escape", "absolute", "asset", "twice", "no config"])
def test_archives_that_hold_too_much_or_too_little_are_refused(kind, good, tmp_path, monkeypatch, capfd):
    contents = members(good)
    odd = {"escape": "../harmed", "absolute": str(tmp_path / "harmed"), "asset": "assets/words.txt"}
    if kind in odd:
        contents[odd[kind]] = b"x"
    elif kind == "no config":
        del contents["config.json"]
    elif kind in ("weights", "config"):
        contents["model.weights.h5" if kind == "weights" else "config.json"] = bytes(2**27)
    path = tmp_path / "bad.keras"
    if kind == "card":
        contents["card.json"] = b" " * 2**27
    write_model(path, contents)
    if kind == "twice":
        with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("config.json", contents["config.json"])
    said = refusal(path, tmp_path, monkeypatch, capfd)
    reason = {"no config": "holds no config.json", "twice": "holds 'config.json'", **odd}.get(kind, "134217728 bytes")
    assert reason in said and not (tmp_path / "harmed").exists() and not (tmp_path.parent / "harmed").exists()


@pytest.mark.parametrize("size", [{"initial_filters": 2**31}, {"depth": 10**6}, {"output_channels": 2**40}])
def test_models_too_large_to_build_are_refused_by_file_and_argument(size, good, tmp_path, monkeypatch, capfd):
    contents = members(good)
    config = json.loads(contents["config.json"])
    config["config"] |= size
    said = refusal(write_model(tmp_path / "bad.keras", contents, config), tmp_path, monkeypatch, capfd)
    assert f"`{next(iter(size))}` must be at most" in said


def test_registered_parts_and_models_of_training_are_taken(tmp_path):
    @keras.saving.register_keras_serializable("test_bad_files")
    def cubed(x):
        return x * x * x

    model = small_model(
        depth=2, initial_filters=4, final_activation=cubed, kernel_regularizer="l2", dtype="mixed_float16"
    )
    model.compile(optimizer="adamw", loss=keras.losses.Huber())
    randomize(model)
    model.save(tmp_path / "model.keras")
    x = image(1, 8, 8, 3)
    assert np.array_equal(load_engine(tmp_path / "model.keras").function(x), run(model, x)[0])


# === Weights ===


def other_file(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("/etc/other.h5", "/x")


def soft(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.SoftLink("/layers/elsewhere")


def virtual(file: h5py.File, name: str) -> None:
    shape = file[name].shape
    del file[name]
    layout = h5py.VirtualLayout(shape, "float32")
    layout[...] = h5py.VirtualSource("/etc/other.h5", "x", shape)
    file.create_virtual_dataset(name, layout)


def raw(file: h5py.File, name: str) -> None:
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, "float32", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def bomb(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_dataset(name, (2**20, 2**15, 64), "float32", chunks=(64, 64, 64), compression="gzip")


def group(file: h5py.File, name: str) -> None:
    layer = "/".join(name.split("/")[:2])
    del file[layer]
    file[layer] = h5py.ExternalLink("/etc/other.h5", "/x")


DAMAGES: dict[Callable[[h5py.File, str], None], str] = {
    other_file: "ExternalLink", soft: "SoftLink", virtual: "lies in another file", raw: "lies in another file",
    bomb: "holds the weights of another architecture", group: "ExternalLink",
}  # fmt: skip


def damaged(content: bytes, damage: Callable[[h5py.File, str], None]) -> bytes:
    """Change the first kernel in a file of weights."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        kernels: list[str] = []
        file.visititems(lambda name, item: kernels.append(name) if len(getattr(item, "shape", ())) == 4 else None)
        damage(file, kernels[0])
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_weights_that_lie_elsewhere_or_nowhere_are_refused(damage, good, tmp_path, monkeypatch, capfd):
    contents = members(good)
    contents["model.weights.h5"] = damaged(contents["model.weights.h5"], damage)
    said = refusal(write_model(tmp_path / "bad.keras", contents), tmp_path, monkeypatch, capfd)
    assert DAMAGES[damage] in said

    model = small_model(input_shape=(None, None, 1), **DENOISER)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    path = tmp_path / "bad.weights.h5"
    path.write_bytes(contents["model.weights.h5"])
    with pytest.raises(WeightsError, match=f"bad.weights.h5: .*{DAMAGES[damage]}"):
        model.load_weights(path)
    for weight, old in zip(model.weights, before, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(weight), old)


# === ONNX and OpenVINO ===


def write_onnx(path: Path, nodes: list, tensors: tuple = (), domain: str = "") -> Path:
    y, given = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None, 1]) for name in ("y", "image")
    )
    graph = helper.make_graph(nodes, "g", [given], [y], tensors)
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save_model(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def weight_in(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


@pytest.mark.parametrize("location", ["../../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_onnx_that_reads_other_files_is_refused(place, location, tmp_path, monkeypatch, capfd):
    (tmp_path / "weights.bin").write_bytes(np.float32(2).tobytes())
    tensor = weight_in(location)
    nodes = [helper.make_node("Mul", ["image", "w"], ["y"])]
    if place == "attribute":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    path = write_onnx(tmp_path / "bad.onnx", nodes, (tensor,) if place == "initializer" else ())
    assert "keeps weights in other files, which are not read" in refused_export(path, monkeypatch, capfd)


def refused_export(path: Path, monkeypatch, capfd) -> str:
    monkeypatch.chdir(path.parent)
    Image.fromarray(samples(16, 16)).save("a.png")
    (path.parent / f"{path.name}.card.json").write_text(json.dumps({"task": "denoise"}))
    before = sorted(path.parent.iterdir())
    assert main(["predict", path.name, "a.png", "-o", "out"]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"convunext: {path.name}: cannot be loaded: ") and said.endswith("Get it again.")
    assert sorted(path.parent.iterdir()) == before
    return said


def test_length_of_a_name_in_more_bytes_than_it_needs_hides_nothing(tmp_path):
    nodes = [helper.make_node("Mul", ["image", "w"], ["y"])]
    path = write_onnx(tmp_path / "bad.onnx", nodes, (weight_in("weights.bin"),))
    content = path.read_bytes()
    entry = content.index(b"\x0a\x08location")
    for tag, length in ((b"\x0a", b"\x88\x00"), (b"\x8a\x00", b"\x08"), (b"\x8a\x80\x00", b"\x88\x80\x80\x00")):
        path.write_bytes(content[:entry] + tag + length + content[entry + 2 :])
        with pytest.raises(FileError, match="keeps weights in other files"):
            load_engine(path)


def test_onnx_with_a_custom_op_is_refused_and_an_own_one_runs(tmp_path, monkeypatch, capfd):
    path = write_onnx(
        tmp_path / "bad.onnx", [helper.make_node("Evil", ["image"], ["y"], domain="com.evil")], (), "com.evil"
    )
    assert "com.evil:Evil" in refused_export(path, monkeypatch, capfd)
    good = write_onnx(tmp_path / "good.onnx", [helper.make_node("Relu", ["image"], ["y"])])
    assert np.array_equal(load_engine(good).function(image(1, 4, 5, 1)), image(1, 4, 5, 1))


@pytest.mark.parametrize("damage", ["custom op", "weights beyond the end", "no weights"])
def test_openvino_with_a_custom_op_or_without_its_weights_is_refused(damage, tmp_path, monkeypatch, capfd):
    openvino = import_openvino()
    opset13 = openvino.opset13
    given = opset13.parameter([-1, -1, -1, 1], np.float32, name="image")
    kernel = opset13.constant(np.full((1, 1, 1, 1), 2, "float32"))
    path = tmp_path / "bad.xml"
    openvino.save_model(openvino.Model([opset13.multiply(given, kernel)], [given]), path, compress_to_fp16=False)
    text = path.read_text()
    if damage == "custom op":
        path.write_text(text.replace('type="Multiply" version="opset1"', 'type="Evil" version="extension"'))
    elif damage == "no weights":
        path.with_suffix(".bin").unlink()
    else:
        path.with_suffix(".bin").write_bytes(b"")
    assert path.read_text() != text or damage != "custom op"
    said = refused_export(path, monkeypatch, capfd)
    assert damage != "custom op" or "Evil" in said
