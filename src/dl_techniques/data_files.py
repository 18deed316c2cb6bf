"""JSON, TOML and CSV files: read within bounds, types checked; tables written so that spreadsheets run nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dl_techniques.atomic import write_file
from dl_techniques.errors import FileError

LARGEST = 2**24  # bytes of JSON
LARGEST_TOML = 2**16  # bytes: a long chain of dotted keys takes the square of its length to parse
LARGEST_TABLE = 2**28  # bytes of CSV
DEEPEST = 64  # objects and lists within each other
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan)")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # beginnings that a spreadsheet takes for one


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        FileError: It cannot be read, is too large or too deep, or holds no JSON object; `remedy` says what to do.
    """
    return parse_json(_content(path, LARGEST, remedy), str(path), remedy)


def parse_json(content: bytes, source: str, remedy: str) -> dict[str, Any]:
    """Return the object of JSON that `source` holds; raise `FileError` as `read_json` does."""
    return _parsed(json.loads, content, source, remedy)


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """Return the tables of a TOML file; raise `FileError` as `read_json` does."""
    return _parsed(tomllib.loads, _content(path, LARGEST_TOML, remedy), str(path), remedy)


def read_csv(path: Path, remedy: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file in UTF-8, each row as long as the header.

    Bytes that are no UTF-8, as names of files may have, become surrogates.

    Raises:
        FileError: It cannot be read, is too large, has no header, or a row of another length, whose line is named.
    """
    text = io.StringIO(_content(path, LARGEST_TABLE, remedy).decode("utf-8", "surrogateescape"), newline="")
    table = csv.reader(text, strict=True)
    rows: list[list[str]] = []
    try:
        header = next(table, None)
        if not header:
            raise ValueError("it has no header")
        for row in table:
            if len(row) != len(header):
                raise ValueError(f"line {table.line_num} has {len(row)} cells, not {len(header)}")
            rows.append(row)
    except (csv.Error, ValueError) as error:
        raise FileError(str(path), f"cannot be read: {error}.", remedy) from error
    return header, rows


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whole or not at all; text that a spreadsheet would compute begins with an apostrophe.

    Raises:
        FileError: It cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_harmless(header))
    table.writerows(map(_harmless, rows))
    write_file(path, text.getvalue().encode("utf-8", "surrogateescape"))


def checked_fields(values: Mapping[str, Any], hints: Mapping[str, Any], source: str, remedy: str) -> dict[str, Any]:
    """Return values of JSON or TOML as the fields of a dataclass have them: paths, tuples, whole numbers.

    Args:
        values: By field.
        hints: Types of the fields, as `typing.get_type_hints` returns them.
        source: The file, for messages.
        remedy: What to do, for messages.

    Raises:
        FileError: A value is of another type or no finite number, or there is no such field.
    """
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _converted(value, hints[name])
        except (KeyError, TypeError, OverflowError) as error:
            rule = f"it must be {_words(hints[name])}" if name in hints else "there is no such field"
            raise FileError(source, f"holds {name} = {_short(value)}; {rule}.", remedy) from error
    return converted


def _converted(value: Any, hint: Any) -> Any:
    """Return a value as its type hint has it; raise `TypeError` if it is of another."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        kind = typing.get_origin(option) or option
        if kind is typing.Literal and isinstance(value, str) and value in typing.get_args(option):
            return value
        if kind is tuple and isinstance(value, list):
            return tuple(_converted(item, typing.get_args(option)[0]) for item in value)
        if kind is dict and isinstance(value, dict):
            return {key: _converted(item, typing.get_args(option)[1]) for key, item in value.items()}
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind not in (int, float) and type(value) is kind:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if number and (kind is float or (kind is int and value == int(value))):
            return kind(value)
    raise TypeError(value)


def _words(hint: Any) -> str:
    """Return what a type hint allows."""
    if isinstance(hint, types.UnionType):
        return " or ".join(_words(option) for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    named = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", Path: "a path"}
    inner = typing.get_args(hint)
    listed = f"a list of: {_words(inner[0])}" if typing.get_origin(hint) is tuple else "a table"
    return named.get(hint, listed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _content(path: Path, largest: int, remedy: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise OSError(f"it is {'a folder' if path.is_dir() else 'no regular file'}")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:
        raise FileError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}.", remedy) from error
    if len(content) > largest:
        raise FileError(str(path), f"has more than {largest} bytes.", remedy)
    return content


def _parsed(parse: Callable[[str], Any], content: bytes, source: str, remedy: str) -> dict[str, Any]:
    try:
        parsed = parse(content.decode("utf-8"))
        if not isinstance(parsed, dict):
            raise ValueError("it holds no object")
        _check_depth(parsed)
    except RecursionError:
        raise FileError(source, f"cannot be read: its values lie more than {DEEPEST} deep.", remedy) from None
    except ValueError as error:
        raise FileError(source, f"cannot be read: {error}.", remedy) from error
    return parsed


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(DEEPEST):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if any(isinstance(value, dict | list) for value in layer):
        raise RecursionError


def _harmless(row: Sequence[Any]) -> list[Any]:
    formulas = (isinstance(cell, str) and cell.startswith(FORMULA) and not NUMBER.fullmatch(cell) for cell in row)
    return [f"'{cell}" if formula else cell for cell, formula in zip(row, formulas, strict=True)]
