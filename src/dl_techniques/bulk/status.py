"""What became of each image, in a Parquet file beside the results: one row per image, kept from run to run."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dl_techniques.bulk.storage import Folder
from dl_techniques.errors import FileError

DONE, REFUSED, FAILED = "done", "refused", "failed"
TABLE, PARTS = "status.parquet", "status"
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "output": pa.string(),  # `None` where there is none
        "state": pa.string(),  # done; refused, for what the image is; failed, for what may pass
        "error": pa.string(),
        "notes": pa.string(),  # what was converted on the way
        "height": pa.int32(),  # of the first page, as the file's head tells; `None` if it cannot be read
        "width": pa.int32(),
        "bytes": pa.int64(),
        "modified": pa.int64(),  # nanoseconds since 1970
        "seconds": pa.float32(),  # from reading to writing; 0 for what was there
        "worker": pa.string(),
        "settings": pa.string(),  # digest of the model and all that a result depends on
    }
)
LARGEST = 2**32  # bytes of a table
ROWS, SECONDS = 4096, 30.0  # written after so many rows, or so long


class Status:
    """The rows of all runs; raises `FileError` where the folder of the results cannot be read.

    Each run adds parts in a folder, so that what is stopped loses no more than the last seconds, and makes one table of
    them when it ends, in which the last row of an image holds.
    """

    def __init__(self, output: Folder) -> None:
        self._output = output
        self._parts = Folder(output / PARTS)
        self._rows: list[pa.Table] = []
        self._written, self._number = time.monotonic(), 0
        self._run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())

    def __str__(self) -> str:
        return self._output / TABLE

    def read(self) -> pa.Table:
        """Return the last row of each image of earlier runs."""
        tables = [self._load(self._output, TABLE)] if self._output.look(TABLE).is_file else []
        tables += [self._load(self._parts, name) for name in self._part_names()]
        return _last(tables)

    def add(self, rows: pa.Table) -> None:
        """Keep rows, to be written with others."""
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= ROWS or time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._rows:
            self._parts.make()
            self._parts.store(f"{self._run}-{self._number:06}.parquet", _bytes(pa.concat_tables(self._rows)))
            self._rows, self._number = [], self._number + 1
        self._written = time.monotonic()

    def finish(self) -> None:
        """Make one table of all parts."""
        self.flush()
        names = self._part_names()
        if names:
            self._output.store(TABLE, _bytes(self.read().sort_by("path")))
            self._parts.remove(names)

    def _part_names(self) -> list[str]:
        return sorted(info.base_name for info in self._parts.list() if info.base_name.endswith(".parquet"))

    @staticmethod
    def _load(folder: Folder, name: str) -> pa.Table:
        try:
            if folder.look(name).size > LARGEST:
                raise ValueError(f"it has more than {LARGEST // 2**20} MB")
            file = pq.ParquetFile(io.BytesIO(folder.read(name)))
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError("its columns are others")
            if sum(group.total_byte_size for group in groups) > LARGEST:
                raise ValueError(f"its rows take more than {LARGEST // 2**20} MB")
            table = file.read()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = f"is no table of the states of images: {error}."
            raise FileError(folder / name, reason, "Remove it: the images are then looked at again.") from error
        return table


def rows(values: Iterable[dict[str, Any]]) -> pa.Table:
    """Return rows as a table."""
    return pa.Table.from_pylist(list(values), schema=SCHEMA)


def refused_before(table: pa.Table, settings: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of the images that were refused under the same settings."""
    wanted = pc.and_(pc.equal(table["state"], REFUSED), pc.equal(table["settings"], settings))
    kept = table.filter(wanted).select(["path", "bytes", "modified"])
    for batch in kept.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _last(tables: list[pa.Table]) -> pa.Table:
    if not tables:
        return SCHEMA.empty_table()
    table = pa.concat_tables(tables)
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    kept = table.group_by("path").aggregate([("row", "max")])["row_max"]
    return table.take(kept.combine_chunks().sort()).drop(["row"])


def _bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
