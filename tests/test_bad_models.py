"""Every damaged or hostile model file, in every command that takes one: named with a remedy, status 2, no traces."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from onnx import helper
from PIL import Image
from rich.console import Console

from bad_images import samples
from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ConvUNextError, FileError
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from models import DENOISER, image, saved, small_model
from test_bad_files import (
    HOSTILE_PARTS,
    around,
    bomb,
    damaged,
    group,
    members,
    other_file,
    raw,
    soft,
    virtual,
    weight_in,
    write_model,
    write_onnx,
)

TENSORFLOW = keras.backend.backend() == "tensorflow"


def truncated(good: Path) -> Path:
    content = good.read_bytes()
    Path("bad.keras").write_bytes(content[: int(0.7 * len(content))])
    return Path("bad.keras")


def flipped(good: Path) -> Path:
    content = bytearray(good.read_bytes())
    content[content.index(b"model.weights.h5") + 5000] ^= 4
    Path("bad.keras").write_bytes(content)
    return Path("bad.keras")


def with_config(change: Callable[[dict], dict]) -> Callable[[Path], Path]:
    def make(good: Path) -> Path:
        contents = members(good)
        return write_model(Path("bad.keras"), contents, change(json.loads(contents["config.json"])))

    return make


def with_argument(**arguments) -> Callable[[Path], Path]:
    return with_config(lambda config: {**config, "config": {**config["config"], **arguments}})


def with_weights(damage: Callable) -> Callable[[Path], Path]:
    def make(good: Path) -> Path:
        contents = members(good)
        contents["model.weights.h5"] = damaged(contents["model.weights.h5"], damage)
        return write_model(Path("bad.keras"), contents)

    return make


def with_member(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda good: write_model(Path("bad.keras"), {**members(good), name: content})


def other_weights(good: Path) -> Path:
    small_model(input_shape=(None, None, 1), **{**DENOISER, "initial_filters": 8}).save("other.keras")
    contents = {**members(good), "model.weights.h5": members(Path("other.keras"))["model.weights.h5"]}
    Path("other.keras").unlink()
    return write_model(Path("bad.keras"), contents)


def newer_preset(good: Path) -> Path:
    load_engine(good).model.save_to_preset("bad", {"task": "denoise"})
    metadata = json.loads(Path("bad/metadata.json").read_text())
    Path("bad/metadata.json").write_text(json.dumps({**metadata, "format": 2}))
    return Path("bad")


def flipped_preset(good: Path) -> Path:
    load_engine(good).model.save_to_preset("bad", {"task": "denoise"})
    content = bytearray(Path("bad/model.weights.safetensors").read_bytes())
    content[-9] ^= 1
    Path("bad/model.weights.safetensors").write_bytes(content)
    return Path("bad")


def elsewhere(good: Path) -> Path:
    return write_onnx(
        Path("bad.onnx"), [helper.make_node("Mul", ["image", "w"], ["y"])], (weight_in("../../etc/passwd"),)
    )


def custom(good: Path) -> Path:
    return write_onnx(Path("bad.onnx"), [helper.make_node("Evil", ["image"], ["y"], domain="com.evil")], (), "com.evil")


def empty(suffix: str) -> Callable[[Path], Path]:
    def make(good: Path) -> Path:
        Path(f"bad{suffix}").write_bytes(b"")
        return Path(f"bad{suffix}")

    return make


# What is made of a good file, and a word of the reason.
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "is not a zip"),
    "bit flipped": (flipped, "CRC"),
    "empty": (empty(".keras"), "zip"),
    "Lambda": (with_config(lambda _: around(HOSTILE_PARTS["Lambda"])), "Sequential, not a ConvUNextModel"),
    "TorchModuleWrapper": (with_config(lambda _: HOSTILE_PARTS["TorchModuleWrapper"]), "TorchModuleWrapper"),
    "TFSMLayer": (with_argument(final_activation=HOSTILE_PARTS["TFSMLayer"]), "TFSMLayer"),
    "StringLookup": (with_argument(kernel_initializer=HOSTILE_PARTS["StringLookup"]), "StringLookup"),
    "os": (with_config(lambda _: HOSTILE_PARTS["os.system"]), "os.system"),
    "external link": (with_weights(other_file), "ExternalLink"),
    "linked group": (with_weights(group), "ExternalLink"),
    "soft link": (with_weights(soft), "SoftLink"),
    "virtual data set": (with_weights(virtual), "lies in another file"),
    "external data set": (with_weights(raw), "lies in another file"),
    "shape bomb": (with_weights(bomb), "holds the weights of another architecture; first mismatch"),
    "zip bomb": (with_member("config.json", bytes(2**26)), "67108864 bytes"),
    "member above": (with_member("../harmed", b"x"), "'../harmed'"),
    "filters": (with_argument(initial_filters=2**31), "`initial_filters` must be at most"),
    "other weights": (other_weights, "holds the weights of another"),
    "newer argument": (with_argument(attention="global"), "`attention` must be one of block_kernel_size, "),
    "newer preset": (newer_preset, "is of format 2; this version reads 1. Update convunext."),
    "flipped preset": (flipped_preset, "SHA-256"),
    "external data": (elsewhere, "weights in other files"),
    "custom op": (custom, "com.evil:Evil"),
    "empty onnx": (empty(".onnx"), "cannot be loaded"),
    "empty xml": (empty(".xml"), "cannot be loaded"),
}
COMMANDS = {
    "predict": ["predict", "MODEL", "photos", "-o", "out"],
    "denoise": ["denoise", "photos", "-o", "out", "--model", "MODEL"],
    "evaluate": ["evaluate", "MODEL", "--images", "photos", "--masks", "photos", "-o", "out"],
    "certify": ["certify", "MODEL"],
    "page": ["page", "MODEL"],
    **({"export": ["export", "MODEL", "-o", "out.onnx"]} if TENSORFLOW else {}),  # elsewhere it names the backend
}
WITH_ENGINE = ("predict", "denoise", "evaluate", "page")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("good"), {"task": "denoise"}, input_shape=(None, None, 1), **DENOISER)


@pytest.mark.parametrize("kind", BAD)
def test_bad_models_are_refused_in_every_command(kind, good, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make, reason = BAD[kind]
    path = make(good)
    Path("photos").mkdir()
    Image.fromarray(samples(16, 16)).save("photos/a.png")
    before = sorted(Path().rglob("*"))
    with pytest.raises(ConvUNextError) as refused:
        load_engine(path)
    assert refused.value.remedy and not refused.value.remedy.startswith("Check the path")
    for name, words in COMMANDS.items():
        arguments = [str(path) if word == "MODEL" else word for word in words]
        engine = ["--engine", "keras"] if name in WITH_ENGINE and path.suffix in (".keras", "") else []
        capfd.readouterr()
        assert main([*arguments, *engine]) == 2, name
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"convunext: {path}") and said.endswith(refused.value.remedy), (name, said)
        assert reason in said and "safe_mode" not in said, (name, said)
        assert sorted(Path().rglob("*")) == before, name


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_is_noticed_or_changes_nothing(seed, good, tmp_path):
    content, chance = good.read_bytes(), random.Random(seed)
    x = image(1, 9, 13, 1)
    expected, noticed = load_engine(good).function(x), 0
    for _ in range(12):
        bad = bytearray(content)
        place = chance.randrange(len(bad))
        bad[place] ^= 1 << chance.randrange(8)
        (tmp_path / "bad.keras").write_bytes(bad)
        try:
            engine = load_engine(tmp_path / "bad.keras")
        except ConvUNextError as error:
            assert "bad.keras" in str(error)
            noticed += 1
        else:
            assert np.array_equal(engine.function(x), expected), place
    assert noticed >= 8


if TENSORFLOW:  # exports are made there

    @pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.tflite", "a"])
    def test_an_export_carries_its_digest_and_a_flipped_bit_is_noticed(name, good, tmp_path, monkeypatch, capfd):
        monkeypatch.chdir(tmp_path)
        Image.fromarray(samples(16, 16)).save("a.png")
        export_model(good, ExportOptions(output=Path(name)), Console(quiet=True))
        digests = read_card(Path(name)).as_dict()["export"]["sha256"]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())
        if Path(name).is_file():  # what belongs to it may be renamed
            shutil.copy(f"{name}.card.json", f"b{name}.card.json")
            for suffix in digests:
                shutil.copy(Path(name).with_suffix(suffix), Path(f"b{name}").with_suffix(suffix))
            assert load_engine(Path(f"b{name}")).channels == 1
        parts = (
            [Path(name) / part for part in digests] if Path(name).is_dir() else [Path(f"a{part}") for part in digests]
        )
        for part in parts:
            content = part.read_bytes()
            if not content:
                continue
            bad = bytearray(content)
            bad[len(bad) // 2] ^= 1
            part.write_bytes(bad)
            with pytest.raises(FileError, match="is damaged or does not belong to its card: the SHA-256 differs"):
                load_engine(name)
            capfd.readouterr()
            assert main(["denoise", "a.png", "-o", "out.png", "--model", name]) == 2
            assert capfd.readouterr().err.strip().endswith("Get it again, with its card.")
            part.unlink()
            with pytest.raises(ConvUNextError):
                load_engine(name)
            part.write_bytes(content)
        assert load_engine(name).channels == 1 and not Path("out.png").exists()
