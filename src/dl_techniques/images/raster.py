"""Images that need not fit the memory: TIFF files read in windows and written band by band."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.atomic import staged_file
from dl_techniques.errors import FileError
from dl_techniques.images.formats import DEEP
from dl_techniques.images.metadata import tiff_extras, tiff_options
from dl_techniques.images.source import reading_errors

BLOCK = 256  # height and width of the tiles that are written, in pixels
PLAIN = 2**22  # bytes of rows without compression that are read at once


class TiffRaster:
    """The only page of a TIFF as an array of which windows are read: `raster[top:bottom, left:right]`.

    Tiles and strips are decoded complete; of strips without compression, however large, the rows that are wanted are
    read. `cache` is bytes of decoded strips or tiles that stay for the next window; none may be larger. Raises
    `FileError` where the file is broken, or cannot be read in parts.
    """

    def __init__(self, path: Path, page: Any, cache: int = 2**26) -> None:
        self.path, self.page, self.cache = path, page, cache
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        self._file: Any = page.parent.filehandle
        name = page.photometric.name
        samples = page.samplesperpixel
        self._jpeg = page.compression in (6, 7, 33007, 34892)
        known = name in ("MINISBLACK", "MINISWHITE", "RGB") or (name == "YCBCR" and page.compression in (6, 7))
        if not known or (samples > 1 and page.planarconfig.name == "SEPARATE"):
            self._refuse(f"is a {name} TIFF too large to be read whole, and is not read in parts.")
        if page.dtype is None or page.dtype.name not in DEEP:
            self._refuse(f"holds {page.dtype} samples.")
        self.shape = (page.imagelength, page.imagewidth, samples)
        self.dtype = np.dtype(page.dtype)
        self._block = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (min(page.rowsperstrip, self.shape[0]), self.shape[1])
        )
        if min(self._block) < 1:
            self._refuse("has strips or tiles without pixels.")
        whole = page.fillorder == 1 and page.bitspersample == 8 * self.dtype.itemsize
        self._plain = whole and page.compression == 1 and not page.is_tiled
        if self._plain and self.block_bytes > cache:
            row = self.block_bytes // self._block[0]
            self._block = (max(1, min(cache // 4, PLAIN) // row), self.shape[1])
        if self.block_bytes > cache:
            kind = "tiles" if page.is_tiled else "rows" if self._plain else "strips"
            self._refuse(
                f"is compressed in {kind} too large for the memory: each takes {self.block_bytes / 1e6:.0f} MB when it "
                f"is decoded, and there is room for {cache / 1e6:.0f} MB."
            )

    @property
    def block_bytes(self) -> int:
        """Bytes of what is decoded at once."""
        return int(np.prod(self._block)) * self.shape[2] * self.dtype.itemsize

    @property
    def extras(self) -> dict[str, Any]:
        """What the file says besides its samples, see `metadata`; they are not turned upright."""
        orientation = self.page.tags.valueof("Orientation", 1)
        return {**tiff_extras(self.page), **({"orientation": int(orientation)} if orientation in range(2, 9) else {})}

    def _refuse(self, reason: str) -> None:
        remedy = "Save it as grey or RGB TIFF, in tiles of some hundred pixels, or raise --max-memory."
        raise FileError(str(self.path), reason, remedy)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        (top, bottom), (left, right) = ((part.start or 0, part.stop) for part in window)
        result = np.empty((bottom - top, right - left, self.shape[2]), self.dtype)
        height, width = self._block
        across = -(-self.shape[1] // width)
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                block = self._read(row * across + column)
                begin, end = max(top, row * height), min(bottom, row * height + block.shape[0])
                first, last = max(left, column * width), min(right, column * width + block.shape[1])
                result[begin - top : end - top, first - left : last - left] = block[
                    begin - row * height : end - row * height, first - column * width : last - column * width
                ]
        white = self.page.photometric.name == "MINISWHITE" and self.dtype.kind == "u"
        return white_value(self.page) - result if white else result

    def _read(self, index: int) -> np.ndarray:
        if index in self._decoded:
            self._decoded.move_to_end(index)
            return self._decoded[index]
        with reading_errors(self.path):
            block = self._rows(index) if self._plain else self._decode(index)
        self._decoded[index] = block
        while sum(other.nbytes for other in self._decoded.values()) > self.cache and len(self._decoded) > 1:
            self._decoded.popitem(last=False)
        return block

    def _decode(self, index: int) -> np.ndarray:
        file = self._file
        file.seek(self.page.dataoffsets[index])
        data = file.read(self.page.databytecounts[index]) if self.page.databytecounts[index] else None
        tables = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader} if self._jpeg else {}
        decoded, _, shape = self.page.decode(data, index, **tables)
        if decoded is None:
            decoded = np.full(shape, self.page.nodata, self.dtype)
        return np.array(decoded[0, : shape[1], : shape[2]])

    def _rows(self, index: int) -> np.ndarray:
        """Read rows of strips that are not compressed, from wherever each strip lies."""
        file, strip = self._file, min(self.page.rowsperstrip, self.shape[0])
        begin = index * self._block[0]
        end, row = min(begin + self._block[0], self.shape[0]), self.block_bytes // self._block[0]
        parts = []
        while begin < end:
            number, last = begin // strip, min(end, (begin // strip + 1) * strip)
            file.seek(self.page.dataoffsets[number] + (begin - number * strip) * row)
            absent = self.page.databytecounts[number] == 0  # of one value, which is not stored
            parts.append(bytes((last - begin) * row) if absent else file.read((last - begin) * row))
            if len(parts[-1]) < (last - begin) * row:
                raise ValueError(f"it ends before row {last} of {self.shape[0]}")
            begin = last
        samples = np.frombuffer(b"".join(parts), self.dtype.newbyteorder(self.page.parent.byteorder))
        return samples.astype(self.dtype, copy=False).reshape(-1, *self.shape[1:])


def white_value(page: Any) -> np.integer:
    """Return the value of white in a page that is stored with 0 as white, as its samples have it."""
    return page.dtype.type(2**page.bitspersample - 1)


def page_options(samples: int, colours: int, extras: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return how tifffile writes a page: compressed without loss, the sample beyond the colours, if any, as alpha."""
    shown = extras.get("colormap") if samples == 1 else None
    shown = None if shown is None or shown.shape[1] != 2 ** (8 * np.dtype(dtype).itemsize) else shown
    return {
        "photometric": "rgb" if colours == 3 else "minisblack" if shown is None else "palette",
        "planarconfig": "contig" if samples > 1 else None,
        "compression": "zlib",
        **({} if shown is None else {"colormap": shown}),
        **({"extrasamples": ["unassalpha"]} if samples > colours else {}),
        **tiff_options(extras, np.dtype(dtype)),
    }


class BandWriter:
    """A TIFF, tiled and compressed, whose rows are given from top to bottom; complete in the end or not there at all.

    The samples beyond `colours` are alpha; `extras` are what the file says besides, see `metadata`.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: Any,
        colours: int | None = None,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.options = page_options(shape[2], colours or shape[2], extras or {}, self.dtype)
        self._bands: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, band: np.ndarray | None) -> None:
        """Add rows, `(rows, width, samples)`; `None` ends the file."""
        while self._thread.is_alive():
            try:
                return self._bands.put(band, timeout=0.1)
            except queue.Full:
                continue
        if band is not None:
            self._raise()

    def close(self) -> None:
        """Wait until all is written and the file is in its place.

        Raises:
            FileError: It cannot be written.
        """
        self._end()
        if self._error is not None:
            self._raise()

    def abandon(self) -> None:
        """Leave nothing behind of a file that is not closed."""
        self._abandoned = True
        self._end()

    def _end(self) -> None:
        self.write(None)
        self._thread.join()

    def _raise(self) -> None:
        if isinstance(self._error, FileError):
            raise self._error
        raise FileError(str(self.path), f"cannot be written: {self._error}.", "Free some space.") from self._error

    def _run(self) -> None:
        import tifffile

        height, width, samples = self.shape
        options = {"tile": (BLOCK, BLOCK), "bigtiff": True, **self.options}
        shape = (height, width) if samples == 1 else self.shape
        try:
            with staged_file(self.path) as file:
                tiles = self._tiles()
                tifffile.imwrite(file, tiles, shape=shape, dtype=self.dtype, **options)
                next(tiles, None)  # waits for `close` where the last tile is full already
        except BaseException as error:  # raised by `write` and `close`
            self._error = error

    def _tiles(self) -> Iterator[np.ndarray]:
        """Yield the tiles row by row, those at the far edges filled up."""
        for rows in self._blocks():
            filled = np.zeros((BLOCK, -(-self.shape[1] // BLOCK) * BLOCK, self.shape[2]), self.dtype)
            filled[: len(rows), : self.shape[1]] = rows
            for left in range(0, filled.shape[1], BLOCK):
                tile = filled[:, left : left + BLOCK]
                yield np.ascontiguousarray(tile[..., 0] if self.shape[2] == 1 else tile)

    def _blocks(self) -> Iterator[np.ndarray]:
        waiting = np.empty((0, self.shape[1], self.shape[2]), self.dtype)
        done = 0
        while (band := self._bands.get()) is not None:
            waiting = np.concatenate([waiting, band])
            while len(waiting) >= BLOCK:
                yield waiting[:BLOCK]
                waiting = waiting[BLOCK:]
                done += BLOCK
        if self._abandoned or done + len(waiting) < self.shape[0]:
            raise EOFError("not all rows came")
        if len(waiting):
            yield waiting
