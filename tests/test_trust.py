"""Exports that nobody vouches for: refused, or, if the user trusts them, run in a process of their own."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf
from onnx import TensorProto, helper
from PIL import Image

from bad_images import samples
from dl_techniques.card import read_card, write_card
from dl_techniques.cli import main
from dl_techniques.engines import isolation
from dl_techniques.engines.formats import FORMATS
from dl_techniques.engines.loading import load_engine
from dl_techniques.engines.saved_model import foreign_saved_model
from dl_techniques.errors import FileError
from dl_techniques.export.certify import Certificate, save_certificate
from dl_techniques.models.convunext.model import ConvUNextModel
from dl_techniques.models.convunext.presets import SHIPPED, preset_card
from models import image, vouch
from test_bad_files import write_onnx

EXPORTS = Path(__file__).parent / "fixtures" / "version_0_1" / "exports"
X = image(1, 9, 13, 1)


def without_digest(name: str, folder: Path) -> Path:
    """Copy an export; its card says nothing of its digest."""
    form = FORMATS["saved_model" if "." not in name else {".onnx": "onnx", ".xml": "openvino"}[Path(name).suffix]]
    for part in form.parts(EXPORTS / name):
        copy = shutil.copytree if part.is_dir() else shutil.copy
        copy(part, folder / part.name)
    card = read_card(EXPORTS / name).as_dict()
    card["export"].pop("sha256")
    write_card(folder / name, card)
    return folder / name


def scalar(path: Path) -> Path:
    """Write a graph whose output is a number."""
    return write_onnx(path, [helper.make_node("ReduceMean", ["image"], ["y"], axes=[0, 1, 2, 3], keepdims=0)])


def twice_as_high(path: Path) -> Path:
    return write_onnx(path, [helper.make_node("Concat", ["image", "image"], ["y"], axis=1)])


def too_much_memory(path: Path) -> Path:
    """Write a graph that asks for 160 TB."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 200000, 200000, 1000])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["image", "zeros"], ["y"]),
    ]
    return write_onnx(path, nodes, (shape,))


def endless(path: Path) -> Path:
    """Write a loop of 2**62 rounds."""
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "w")]
    kept = helper.make_tensor_value_info("k", TensorProto.BOOL, [])
    nodes = [helper.make_node("Identity", ["c"], ["k"]), helper.make_node("Sin", ["v"], ["w"])]
    body = helper.make_graph(nodes, "body", [number, flag, values[0]], [kept, values[1]])
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [2**62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return write_onnx(path, [helper.make_node("Loop", ["rounds", "yes", "image"], ["y"], body=body)], (rounds, yes))


ODD = {
    scalar: r"does not return an image of the size of its input: float32 of shape \(\) for \(1, 9, 13, 1\)",
    twice_as_high: r"does not return an image of the size of its input: float32 of shape \(1, 18, 13, 1\)",
    too_much_memory: "cannot compute an image of shape",
}


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_output_that_is_no_image_of_the_size_is_refused(make, tmp_path):
    engine = load_engine(vouch(make(tmp_path / "bad.onnx")))
    with pytest.raises(FileError, match=ODD[make]):
        engine.function(X)


def test_exports_without_digest_are_refused_unless_trusted(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(samples(16, 16)).save("a.png")
    name = without_digest("denoise.onnx", tmp_path).name
    for words in (["predict", name, "a.png", "-o", "b.png"], ["certify", name], ["page", name],
                  ["denoise", "a.png", "-o", "b.png", "--model", name],
                  ["evaluate", name, "--images", "a.png", "--targets", "a.png", "-o", "c"]):  # fmt: skip
        assert main(words) == 2
        said = capfd.readouterr().err.strip()
        assert said.startswith(f"convunext: {name}: carries no digest in its card") and "Add --trust" in said, words
    assert main(["predict", name, "a.png", "-o", "b.png", "--trust"]) == 0
    assert main(["predict", str(EXPORTS / name), "a.png", "-o", "c.png"]) == 0
    assert Path("b.png").read_bytes() == Path("c.png").read_bytes()


@pytest.mark.parametrize("name", ["denoise.xml", "denoise-saved"])
def test_a_trusted_export_gives_in_its_process_what_it_gives_here(name, tmp_path):
    engine = load_engine(without_digest(name, tmp_path), trust=True)
    expected = load_engine(EXPORTS / name).function(X)
    assert np.array_equal(engine.function(X), expected)
    results = [None] * 4
    threads = [
        threading.Thread(target=lambda n=n: results.__setitem__(n, engine.function(n * X)[0].max())) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [load_engine(EXPORTS / name).function(n * X)[0].max() for n in range(4)]


def test_a_trusted_export_that_crashes_or_never_ends_is_refused_and_this_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "COMPUTING", 1.0)
    engine = load_engine(endless(tmp_path / "loop.onnx"), trust=True)
    start = time.monotonic()
    for _ in range(2):
        with pytest.raises(FileError, match="loop.onnx: cannot compute an image .*: no answer came within 1 s"):
            engine.function(X)
    assert time.monotonic() - start < 10
    engine = load_engine(without_digest("denoise.onnx", tmp_path), trust=True)
    (process,) = [child for child in psutil.Process().children() if "denoise.onnx" in " ".join(child.cmdline())]
    process.kill()
    with pytest.raises(FileError, match="its process ended: SIGKILL"):
        engine.function(X)


def test_loops_are_foreign_operations_with_digest_or_without(tmp_path):
    path = vouch(endless(tmp_path / "loop.onnx"))
    with pytest.raises(FileError, match="has the operation Loop, which no export of this package has"):
        load_engine(path)


def test_digest_that_differs_is_refused_even_if_trusted(tmp_path):
    for part in ("denoise.onnx", "denoise.onnx.card.json"):
        shutil.copy(EXPORTS / part, tmp_path)
    content = bytearray((tmp_path / "denoise.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "denoise.onnx").write_bytes(content)
    with pytest.raises(FileError, match="the SHA-256 differs"):
        load_engine(tmp_path / "denoise.onnx", trust=True)


# === SavedModel ===


class Stranger(tf.Module):
    """A graph that reads a file of its user, and writes one."""

    def __init__(self, read: Path, write: Path) -> None:
        self.read, self.write = str(read), str(write)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32, "image")])
    def serve(self, x):
        tf.io.write_file(self.write, tf.io.read_file(self.read))
        return x


def test_a_saved_model_that_reads_and_writes_files_is_refused_unless_trusted(tmp_path):
    (tmp_path / "secret").write_text("secret")
    stranger = Stranger(tmp_path / "secret", tmp_path / "taken")
    tf.saved_model.save(stranger, tmp_path / "model", {"serve": stranger.serve})
    vouch(tmp_path / "model")
    with pytest.raises(FileError, match="has the operation (ReadFile|WriteFile), which no export of this package has"):
        load_engine(tmp_path / "model")
    assert not (tmp_path / "taken").exists()
    assert np.array_equal(load_engine(tmp_path / "model", trust=True).function(X), X)
    assert (tmp_path / "taken").read_text() == "secret"


class Saver(tf.Module):
    """A graph that calls what saves its weights, with another path."""

    def __init__(self, write: Path) -> None:
        self.write, self.weight = str(write), tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32, "image")])
    def serve(self, x):
        tf.raw_ops.SaveV2(prefix=self.write, tensor_names=["a"], shape_and_slices=[""], tensors=[self.weight])
        return x


def test_saving_is_foreign_where_the_model_itself_does_it(tmp_path):
    tf.saved_model.save(model := Saver(tmp_path / "taken"), tmp_path / "model", {"serve": model.serve})
    assert foreign_saved_model(tmp_path / "model") == "SaveV2"
    assert foreign_saved_model(EXPORTS / "denoise-saved") == ""


def test_a_damaged_saved_model_is_refused_by_name(tmp_path):
    path = without_digest("denoise-saved", tmp_path)
    content = (path / "saved_model.pb").read_bytes()
    for damaged in (content[:1000], content.replace(b"Conv2D", b"Conv9D"), b""):
        (path / "saved_model.pb").write_bytes(damaged)
        vouch(path)
        with pytest.raises(FileError, match="denoise-saved: (cannot be loaded|has the operation Conv9D)"):
            load_engine(path)


# === Presets ===


@pytest.mark.parametrize("change", [("config.json", b"linear", b"relu"), ("card.json", b"denoise", b"restore")])
def test_config_and_card_of_a_preset_carry_their_digest(change, tmp_path):
    name, old, new = change
    preset = shutil.copytree(SHIPPED / "denoise-gray", tmp_path / "preset")
    content = (preset / name).read_bytes()
    (preset / name).write_bytes(content.replace(old, new, 1))
    with pytest.raises(FileError, match=f"{name}: is not as it was written: its SHA-256 is not that in metadata.json"):
        load_engine(preset)
    metadata = json.loads((preset / "metadata.json").read_text())
    assert metadata.pop("files").keys() == {"config.json", "card.json"}
    (preset / "metadata.json").write_text(json.dumps(metadata))  # as version 0.1 wrote it
    assert load_engine(preset).channels == 1


def test_a_certificate_is_written_into_a_preset_with_its_digest(tmp_path):
    preset = shutil.copytree(SHIPPED / "denoise-gray", tmp_path / "preset")
    certificate = Certificate(np.zeros((1, 1)), ((4, 4),), (0.37,), 0.0, 1e-5)
    save_certificate(certificate, load_engine(preset))
    assert load_engine(preset).channels == 1 and preset_card(preset).certificate["limit"] == 1e-5


def test_a_config_that_cannot_be_built_is_named(tmp_path):
    preset = shutil.copytree(SHIPPED / "denoise-gray", tmp_path / "preset")
    (preset / "config.json").write_text((preset / "config.json").read_text().replace("linear", "hinear"))
    metadata = json.loads((preset / "metadata.json").read_text())
    del metadata["files"]
    (preset / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(FileError, match="config.json: cannot be built: Could not interpret activation function"):
        ConvUNextModel.from_preset(preset)


# === Cards of exports ===


def test_card_of_an_export_carries_its_digest(tmp_path):
    path = tmp_path / "denoise.onnx"
    for part in (path.name, f"{path.name}.card.json"):
        shutil.copy(EXPORTS / part, tmp_path)
    write_card(path, read_card(path))  # as this version writes it
    assert load_engine(path).channels == 1
    card = tmp_path / f"{path.name}.card.json"
    card.write_text(card.read_text().replace('"normalization": "none"', '"normalization": "standardize"'))
    with pytest.raises(FileError, match="the SHA-256 differs"):
        load_engine(path)
