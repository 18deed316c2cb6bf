"""CSV files that say which image and target belong together, as spreadsheets write them."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dl_techniques.errors import FileError, first_of

LARGEST = 256 * 2**20  # bytes
DELIMITERS = ",;\t"


def read_pair_list(path: Path, columns: Sequence[str]) -> list[tuple[Path, ...]]:
    """Return the files that a CSV file names in columns, row by row; paths in it are relative to it.

    Commas, semicolons or tabs separate the cells; the encoding is UTF-8, or UTF-16 with its mark; capitals in the names
    of columns do not matter.

    Raises:
        FileError: It cannot be read, lacks a column, names the same files twice, or files that are not there.
    """
    named = " and ".join(f"'{name}'" for name in columns)
    try:
        rows = _rows(path, columns)
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(str(path), f"cannot be read: {error}.", "Save it as a CSV file in UTF-8.") from error
    if not rows:
        raise FileError(str(path), f"has no rows with columns {named}.", "Add them.")
    if short := [str(number) for number, row in rows.items() if not all(row)]:
        raise FileError(str(path), f"names no file in the rows {first_of(short)}.", "Fill or delete them.")
    files = [tuple(path.parent / cell for cell in row) for row in rows.values()]
    listed = dict.fromkeys(file for row in files for file in row)
    if missing := [file.name for file in listed if not os.path.isfile(file)]:
        raise FileError(str(path), f"names files that do not exist: {first_of(missing)}.", "Correct the paths.")
    if twice := [" and ".join(file.name for file in row) for row, count in Counter(files).items() if count > 1]:
        raise FileError(str(path), f"has more than one row for {first_of(twice)}.", "Delete the others.")
    return files


def _rows(path: Path, columns: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the cells of columns by the number of their row; none where a column is not there."""
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST // 2**20} MB")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes")
    for delimiter in DELIMITERS:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        header, *rows = list(table) or [[]]
        known = [cell.strip().casefold() for cell in header]
        if all(name in known for name in columns):
            places = [known.index(name) for name in columns]
            cells = {number: [*row, *[""] * len(known)] for number, row in enumerate(rows, 2) if any(row)}
            return {number: tuple(row[place] for place in places) for number, row in cells.items()}
    return {}
