"""Nothing that a file holds reaches the terminal as it is: titles, colours, bells, lines that look like ours."""

import logging
import sys
import zipfile

import pytest
from rich.table import Table
from rich.text import Text

from dl_techniques.cli import main
from dl_techniques.cli.terminal import escaping_streams, terminal
from dl_techniques.datasets.checks import refuse
from dl_techniques.errors import ArgumentError, FileError, first_of
from dl_techniques.models.convunext.archive import check_archive

EVIL = "\x1b]0;owned\x07\x1b[2J\r\nconvunext: all is well\u202e\x9b31m"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\nconvunext: all is well\u202e\x9b31m"


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    "error",
    [
        FileError(EVIL, "is broken."),
        FileError("a", f"holds {EVIL}.", "Get it again."),
        FileError("a", "is broken.", f"Use {EVIL}."),
        ArgumentError("classes", f"must not be {EVIL}", 3, f"Use {EVIL}."),
    ],
)
def test_messages_are_one_line_that_does_nothing(error):
    assert str(error).isprintable() and SHOWN in str(error)


def test_lists_of_messages_keep_their_lines_and_escape_the_items():
    with pytest.raises(FileError) as caught:
        refuse([f"{EVIL}: is empty.", "b.png: is empty."], 3, "images")
    assert str(caught.value).split("\n") == [
        "images: 2 of 3 pairs cannot be used:", f"  {SHOWN}: is empty.", "  b.png: is empty.",
    ]  # fmt: skip
    assert first_of([EVIL, "b"]) == f"{SHOWN}, b"


def test_tables_and_prints_escape_and_are_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table = Table(EVIL, "Dice", title=f"title {EVIL}")
    table.add_row(f"[red]{EVIL}:smile:", "1")
    table.add_row(Text("text \x1b[2J"), "2")
    console = terminal()
    console.print(table)
    console.print(f"note: {EVIL}")
    shown = capsys.readouterr().out
    assert harmless(shown) and f"[red]{SHOWN}:smile:" in shown and r"text \x1b[2J" in shown
    assert f"title {SHOWN}" in shown.replace("\n", "") and f"\nnote: {SHOWN}\n" in shown


def test_what_others_print_or_log_is_escaped(capsys):
    with escaping_streams():
        print("a\x1b[2J\tb\nc\udcff")
        print("d\x07", file=sys.stderr)
        logging.lastResort.handle(logging.LogRecord("tifffile", logging.WARNING, "x", 1, "e\x1b[2J", None, None))
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2J\tb\nc\\udcff\n"
    assert "d\\x07" in err and "e\\x1b[2J" in err and harmless(err)


@pytest.mark.parametrize("tokens", [["certify", f"{EVIL}.keras"], ["predict", f"--{EVIL}"], ["train", EVIL]])
def test_commands_name_what_they_refuse_without_doing_what_it_says(tokens, capsys):
    assert main(tokens) == 2
    shown = "".join(capsys.readouterr())
    assert harmless(shown.replace("\x1b[0m", "")) and r"\x1b]0;owned" in shown


@pytest.mark.parametrize(
    "config",
    [
        {"module": "x", "class_name": EVIL},
        {"module": "dl_techniques.models.convunext.model", "class_name": "ConvUNextModel",
         "config": {"kernel_initializer": {"class_name": EVIL, "module": "m"}}},
    ],
    ids=["model", "part"],
)  # fmt: skip
def test_classes_that_a_model_names_are_escaped(config, tmp_path):
    import json

    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config))
    with pytest.raises(FileError) as caught:
        check_archive(path)
    assert str(caught.value).isprintable() and SHOWN in str(caught.value)
