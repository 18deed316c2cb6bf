"""Files of data from strangers: bounded, their types checked, refused by one error that names file and field."""

import csv
import json
import os
from pathlib import Path
from typing import Literal

import pytest

from dl_techniques import data_files
from dl_techniques.card import ModelCard, read_card
from dl_techniques.data_files import checked_fields, parse_json, read_csv, read_json, read_toml, write_csv
from dl_techniques.errors import FileError

DEEP = 100_000


def short(value: object) -> str:
    return repr(value[:20] if isinstance(value, str | bytes) else value)


BROKEN = {
    "deep": b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep within reason of the parser": b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}",
    "list": b"[1, 2]",
    "number": b"7",
    "empty": b"",
    "cut": b'{"a": 1',
    "binary": bytes(range(256)),
    "wide": '{"a": 1}'.encode("utf-16"),
    "digits": b'{"a": 1' + b"0" * 10_000 + b"}",
    "large": b'{"a": "' + b" " * 2**24 + b'"}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_json_that_is_no_object_within_bounds_is_refused_by_name(kind, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(
        FileError, match=r"config\.json: (cannot be read: .*|has more than 16777216 bytes)\. Get it again"
    ) as caught:
        read_json(path, "Get it again.")
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50_000, "[" + "a." * 3000 + "b]", "a = 1\na = 2", "a =", "\0"], ids=short
)
def test_toml_that_is_broken_or_deep_is_refused_by_name(text, tmp_path):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(FileError, match=r"plan\.toml: cannot be read: .*\. Correct it"):
        read_toml(tmp_path / "plan.toml", "Correct it.")


def test_what_is_no_regular_file_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "no regular file"), (".", "a folder"), ("gone", "No such file"), ("a\0b", "null")):
        with pytest.raises(FileError, match=f"cannot be read: .*{reason}"):
            read_json(tmp_path / name, "Get it again.")


def test_nested_values_within_bounds_are_read(tmp_path):
    content = {"a": [[{"b": [1.5, None, "c"]}]], "d": float("inf")}
    assert parse_json(json.dumps(content).encode(), "here", "") == content
    (tmp_path / "x.toml").write_text('[settings]\nsteps = 3\nclasses = ["a", "b"]\n')
    assert read_toml(tmp_path / "x.toml", "") == {"settings": {"steps": 3, "classes": ["a", "b"]}}


HINTS = {
    "steps": int,
    "rate": float,
    "patch": int | None,
    "use_bias": bool,
    "images": str,
    "output": Path,
    "loss": Literal["dice", "mse"],
    "classes": tuple[str, ...],
    "versions": dict[str, str],
}
RIGHT = {
    "steps": [(3, 3), (1e4, 10_000)],
    "rate": [(0.5, 0.5), (2, 2.0)],
    "patch": [(None, None), (8, 8)],
    "use_bias": [(True, True)],
    "images": [("=1+1", "=1+1")],
    "output": [("a/b", Path("a/b"))],
    "loss": [("mse", "mse")],
    "classes": [(["a", "b"], ("a", "b")), ([], ())],
    "versions": [({"keras": "3"}, {"keras": "3"})],
}
FALSE = {
    "steps": [True, 1.5, "3", None, [3], {}, float("nan"), float("inf")],
    "rate": [True, "0.5", None, float("nan"), float("-inf"), 10**400],
    "patch": ["8", False, 0.5, []],
    "use_bias": [1, 0, "true", None],
    "images": [5, None, ["a"], {}],
    "output": [5, None, []],
    "loss": ["mae", 1, None, ["mse"], []],
    "classes": ["ab", [1], [["a"]], None, {"a": "b"}],
    "versions": [[1], "x", {"keras": 3}, None],
    "unknown": [1],
}


@pytest.mark.parametrize("name", RIGHT)
def test_values_become_what_their_fields_have(name):
    for value, expected in RIGHT[name]:
        found = checked_fields({name: value}, HINTS, "config.json", "Restore it.")
        assert found == {name: expected} and type(found[name]) is type(expected)


@pytest.mark.parametrize("name, value", [(name, value) for name, values in FALSE.items() for value in values])
def test_values_of_other_types_are_refused_by_file_and_field(name, value):
    with pytest.raises(
        FileError, match=rf"^config\.json: holds {name} = .*; (it must be|there is no such field).*\. Restore it\.$"
    ):
        checked_fields({"loss": "mse", name: value}, HINTS, "config.json", "Restore it.")


# === tables ===

FORMULAS = ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1")
CELLS = (*FORMULAS, 'q"uote,x', "new\nline", "-1.5", "+2e-3", "-inf", "plain", "")


def test_tables_are_csv_and_no_cell_is_a_formula(tmp_path):
    write_csv(tmp_path / "t.csv", ("name", "value"), [*((cell, 1) for cell in CELLS), ("number", -1.5)])
    with open(tmp_path / "t.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "value"] and rows[-1] == ["number", "-1.5"]
    assert [name for name, _ in rows[:-1]] == [f"'{cell}" if cell in FORMULAS else cell for cell in CELLS]


def test_names_that_are_no_utf8_are_read_as_they_were_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_csv(tmp_path / "t.csv", ("image",), [(name,)])
    assert read_csv(tmp_path / "t.csv", "") == (["image"], [[name]])


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a,b\n1\n", b"a,b\n1,2,3\n", b'a,b\n"1,2\n', b"a\n" + b"x" * 200_000], ids=short
)
def test_tables_that_are_none_are_refused_by_name(content, tmp_path):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(FileError, match=r"log\.csv: cannot be read: .*\. Restore it"):
        read_csv(tmp_path / "log.csv", "Restore it.")


def test_tables_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "LARGEST_TABLE", 2**20)
    (tmp_path / "log.csv").write_bytes(b"a\n" + b"1\n" * 2**19)
    with pytest.raises(FileError, match="has more than 1048576 bytes"):
        read_csv(tmp_path / "log.csv", "")


# === cards ===


@pytest.mark.parametrize(
    "card, reason",
    [
        (BROKEN["deep"], "64 deep"),
        (b"[]", "no object"),
        (b'{"task": 5}', "task is 5"),
        (b'{"channels": true}', "channels is True"),
        (b'{"channels": 0}', "channels are 0"),
        (b'{"schema_version": "2"}', "schema version '2'"),
        (b'{"schema_version": true}', "schema version True"),
        (b'{"a": "' + b" " * 2**24 + b'"}', "more than 16777216 bytes"),
    ],
    ids=short,
)
def test_cards_are_bounded_and_their_types_checked(card, reason, tmp_path):
    (tmp_path / "m.onnx.card.json").write_bytes(card)
    with pytest.raises(FileError, match=rf"m\.onnx\.card\.json: .*{reason}"):
        read_card(tmp_path / "m.onnx")


@pytest.mark.parametrize("patch, expected", [(64, 64), ([96, 136], None), ("64", None), (-1, None), (True, None)])
def test_a_card_has_one_size_of_patches_or_none(patch, expected):
    assert ModelCard.from_dict({"training": {"patch": patch}}).patch == expected


def test_a_card_too_large_in_a_model_is_refused_not_taken_for_none(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("card.json", b'{"task": "denoise", "a": "' + b" " * 2**20 + b'"}')
    with pytest.raises(FileError, match="holds a card of 10486"):
        read_card(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("config.json", b"{}")
    assert read_card(tmp_path / "m.keras") == ModelCard()
