"""Which pages of a TIFF are images, which are channels of one, and which are copies; all that it declares is there.

ImageJ, OME-XML and tifffile declare planes and their axes in the first page's description. A stack may lie behind one
page; the full size may lie in a page of a page (a SubIFD). Counts that differ are refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dl_techniques.errors import FileError, first_of
from dl_techniques.images import ome
from dl_techniques.images.tiff_limits import COPY, MAX_PAGES

SENSOR = (32803, 34892)  # colour filter array and linear raw: samples of a camera's sensor
SLIDES = ("svs", "ndpi", "scn", "bif", "philips", "qpi", "avs")  # scanners' files, with labels and overviews
LARGEST_RATIO = 1.9  # of the sides of two pages, from which the smaller can be a level of a pyramid
NARROW = 4  # pixels: what tifffile writes as so narrow pages were the channels of one image


class Plane(NamedTuple):
    """Where samples lie: number of the page, of the SubIFD in it if any, and bytes behind those of the page itself."""

    page: int
    subifd: int | None = None
    shift: int = 0


@dataclass(frozen=True)
class Layout:
    """The images of a file.

    Attributes:
        planes: In the order of the axes that the file declares.
        groups: Numbers of the planes of each image, several where they are its channels, or its rows.
        rows: Whether the planes of an image are its rows, of which each pixel's samples lie side by side.
        description: Of the first plane of a result that has all planes in their order; `None` if it declares nothing.
        regrouped: The same where channels follow one another.
        notes: What was chosen and passed over, in words.
    """

    planes: tuple[Plane, ...]
    groups: tuple[tuple[int, ...], ...]
    rows: bool = False
    description: str | None = None
    regrouped: str | None = None
    notes: tuple[str, ...] = ()


class _Found(NamedTuple):
    """A page and what its tags say of it."""

    plane: Plane
    size: tuple[int, int]
    parent: tuple[int, int]
    kind: int
    photometric: int
    dpi: Any

    @property
    def reduced(self) -> bool:
        return bool(self.kind & 1)

    @property
    def mask(self) -> bool:
        return bool(self.kind & 4)


def plan_layout(path: Path, file: Any) -> Layout:
    """Return the images of a TIFF that tifffile opened.

    Raises:
        FileError: It declares other planes than it holds, or holds raw sensor data.
    """
    found = _pages_of(file)
    if any(page.photometric in SENSOR for page in found):
        raise FileError(str(path), "holds raw sensor data of a camera.", "Develop it to TIFF or PNG.")
    chosen, notes = _full_size(file, found)
    first = file.pages.first
    planes = [page.plane for page in chosen]
    if first.is_shaped:
        layout = _shaped(path, file, planes)
    elif file.is_ome:
        layout = _ome(path, file, planes)
    elif first.is_imagej:
        layout = _imagej(path, file, planes)
    else:
        layout = _plain(planes)
    if len(sizes := Counter(f"{page.size[1]}x{page.size[0]}" for page in chosen)) > 1:
        notes.append(f"pages of different sizes: {first_of(list(sizes))}")
    return replace(layout, notes=(*notes, *layout.notes))


def _pages_of(file: Any) -> list[_Found]:
    """Return all pages and, behind each, those within it."""
    found = []
    for number, page in enumerate(file.pages):
        size = page.imagelength, page.imagewidth
        found.append(_found(page, Plane(number), size))
        for place in range(min(len(page.subifds or ()), 32)):
            inner = subifd(file, page, place)
            found.append(_found(inner, Plane(number, place), size))
    return found


def _found(page: Any, plane: Plane, parent: tuple[int, int]) -> _Found:
    size, dpi = (page.imagelength, page.imagewidth), page.tags.valueof("XResolution")
    return _Found(plane, size, parent, int(page.subfiletype), int(page.photometric), dpi)


def subifd(file: Any, page: Any, place: int) -> Any:
    """Return a page within a page."""
    import tifffile

    file.filehandle.seek(page.subifds[place])
    return tifffile.TiffPage(file, (page.index, place))


def _full_size(file: Any, found: list[_Found]) -> tuple[list[_Found], list[str]]:
    """Return the pages that are no masks, previews or smaller copies of others; and in words what was passed over."""
    images = [page for page in found if not page.mask]
    inner = [page for page in images if page.plane.subifd is not None and not page.reduced]
    hidden = {page.plane.page for page in inner if math.prod(page.size) > math.prod(page.parent)}
    full = [page for page in images if not page.reduced]
    chosen = [
        page
        for page in full
        if (page.plane.page in hidden) == (page.plane.subifd is not None) and math.prod(page.size) >= 1
    ]
    chosen = chosen or [page for page in images if page.plane.subifd is None]
    chosen = _without_levels(chosen, any(getattr(file, f"is_{kind}") for kind in SLIDES))
    left = [page for page in images if page not in chosen]
    notes = []
    if left:
        sizes = [f"{page.size[1]}x{page.size[0]}" for page in left]
        notes.append(f"smaller copies and previews left out: {first_of(list(dict.fromkeys(sizes)))}")
    if len(images) < len(found):
        notes.append(f"{len(found) - len(images)} mask pages left out")
    return chosen, notes


def _without_levels(pages: list[_Found], slide: bool) -> list[_Found]:
    """Return the pages of the largest size where all others are levels of a pyramid on them; otherwise all pages.

    A level has the same shape in fewer pixels; pages of one known resolution are none, but differ in size.
    """
    groups = Counter(page.size for page in pages)
    if len(groups) < 2:
        return pages
    largest = max(groups, key=math.prod)
    resolutions = {page.dpi for page in pages}
    same = len(resolutions) == 1 and resolutions.isdisjoint({None, (1, 1)})
    levels = all(groups[size] == groups[largest] and _is_level(size, largest) for size in groups if size != largest)
    return [page for page in pages if page.size == largest] if slide or (levels and not same) else pages


def _is_level(size: tuple[int, int], full: tuple[int, int]) -> bool:
    ratios = [full[axis] / max(size[axis], 1) for axis in (0, 1)]
    near = any(abs(full[1 - axis] / ratios[axis] - size[1 - axis]) <= 1.5 for axis in (0, 1))
    return min(ratios) >= LARGEST_RATIO and near


def _plain(planes: list[Plane], description: str | None = None, notes: tuple[str, ...] = ()) -> Layout:
    return Layout(tuple(planes), tuple((n,) for n in range(len(planes))), False, description, description, notes)


def _grouped(planes: list[Plane], lead: tuple[int, ...], channels: int | None, descriptions: tuple[str, str]) -> Layout:
    """Return planes of the leading axes `lead`, of which that number `channels`, if any, is channels."""
    numbers = np.arange(len(planes)).reshape(lead)
    if channels is not None:
        groups = np.moveaxis(numbers, channels, -1).reshape(-1, lead[channels])
    else:
        groups = numbers.reshape(-1, 1)
    return Layout(tuple(planes), tuple(map(tuple, groups.tolist())), False, *descriptions)


def _complete(path: Path, file: Any, planes: list[Plane], declared: int, by: str) -> list[Plane]:
    """Return as many planes as are declared: the pages, or what lies behind the only one.

    Raises:
        FileError: There are others.
    """
    if len(planes) == declared:
        return planes
    page = file.pages[planes[0].page]
    size = page.nbytes
    behind = len(planes) == 1 and 1 < declared <= MAX_PAGES and page.is_final and planes[0].subifd is None
    if behind and page.dataoffsets[0] + declared * size <= file.filehandle.size:
        return [planes[0]._replace(shift=number * size) for number in range(declared)]
    held = f"{len(planes)} page{'s' * (len(planes) != 1)}"
    reason = f"declares {declared} planes ({by}) and holds {held}: it is cut off or was changed."
    raise FileError(str(path), reason, COPY)


# === What tifffile, ImageJ and OME declare ===


def _shaped(path: Path, file: Any, planes: list[Plane]) -> Layout:
    """Follow the shapes that tifffile writes, one for each series of pages."""
    import tifffile

    found: list[Plane] = []
    parts: list[Layout] = []
    starts = [n for n, plane in enumerate(planes) if plane.subifd is None and file.pages[plane.page].is_shaped]
    for begin, end in zip(starts, [*starts[1:], len(planes)], strict=True):
        page = file.pages[planes[begin].page]
        told = tifffile.tifffile.shaped_description_metadata(page.shaped_description)
        shape = tuple(int(side) for side in told["shape"])
        axes = str(told.get("axes", ""))
        count, rest = divmod(math.prod(shape), math.prod(page.shape))
        if rest or count < 1 or not 0 < len(shape) <= 16:
            parts.append(_plain(planes[begin:end], notes=("its description tells of another shape",)))
            continue
        run = _complete(path, file, planes[begin:end], count, "in tifffile's shape")
        parts.append(_shaped_series(page, run, shape, axes if len(axes) == len(shape) else "", told))
    if len(parts) == 1 and starts == [0]:
        return parts[0]
    if starts[0]:
        parts.insert(0, _plain(planes[: starts[0]]))
    for part in parts:
        found += part.planes
    return _plain(found, notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)))


def _shaped_series(page: Any, planes: list[Plane], shape: tuple[int, ...], axes: str, told: dict[str, Any]) -> Layout:
    told = {key: value for key, value in told.items() if key != "truncated"}
    text = json.dumps({**told, "shape": shape})
    side, narrow = len(planes), page.shape[-1]
    if page.samplesperpixel == 1 and len(shape) > 2 and 2 <= narrow <= NARROW and narrow == shape[-1]:
        rows = shape[-3]
        if rows > 1 and side % rows == 0 and axes[-3:] in ("", "YXC", "YXS"):
            numbers = np.arange(side).reshape(-1, rows).tolist()
            return Layout(tuple(planes), tuple(map(tuple, numbers)), True, text, text)
    lead = _lead(shape, side)
    place = axes[: len(lead)].find("C") if axes and page.samplesperpixel == 1 else -1
    if lead and 0 <= place and lead[place] > 1:
        last = len(lead) - 1
        order = [*(n for n in range(len(lead)) if n != place), place, *range(last + 1, len(shape))]
        moved = {**told, "shape": [shape[n] for n in order], "axes": "".join(axes[n] for n in order)}
        return _grouped(planes, lead, place, (text, json.dumps(moved)))
    return _plain(planes, text if axes or len(shape) > 3 else None)


def _lead(shape: tuple[int, ...], planes: int) -> tuple[int, ...]:
    """Return the leading axes that count planes; none if they do not."""
    return next((shape[:n] for n in range(len(shape)) if math.prod(shape[:n]) == planes), ())


def _imagej(path: Path, file: Any, planes: list[Plane]) -> Layout:
    told, page = file.imagej_metadata or {}, file.pages.first
    sizes = [told.get(name, 1) for name in ("frames", "slices", "channels")]
    images = told.get("images", 1)
    if not all(isinstance(size, int) and size >= 1 for size in (*sizes, images)):
        raise FileError(str(path), "declares no sensible number of images to ImageJ.", COPY)
    frames, slices, channels = sizes
    if page.samplesperpixel > 1 and page.samplesperpixel == channels:
        channels = 1  # of each pixel
    declared = max(frames * slices * channels, images if channels == sizes[2] else 1)
    if declared > 1 or len(planes) == 1:
        planes = _complete(path, file, planes, declared, "images= of ImageJ")
    text = page.imagej_description
    shown = told.get("mode") in ("composite", "color")
    if channels > 1 and shown and page.samplesperpixel == 1 and frames * slices * channels == len(planes):
        return _grouped(planes, (frames, slices, channels), 2, (text, text))
    return _plain(planes, text)


def _ome(path: Path, file: Any, planes: list[Plane]) -> Layout:
    text = file.pages.first.description
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FileError(str(path), "has OME-XML that defines entities.", COPY)
    if ome.largest_number(text) > MAX_PAGES:
        raise FileError(str(path), f"declares more than {MAX_PAGES} planes to OME.", COPY)
    series = [one for one in file.series if one.kind == "ome"]
    if not series:
        note = "one of several files of an OME image" if "UUID" in text else "its OME-XML cannot be read"
        return _plain(planes, notes=(note,))
    pages = [page for one in series for page in one.pages]
    held = [page for page in pages if page is not None]
    if len(held) == len(pages) == len(planes):
        ordered = [Plane(page.index) for page in held]
    else:
        ordered = _complete(
            path, file, planes[: len(held)] if len(held) < len(pages) else planes, len(pages), "in OME-XML"
        )
    axes, shape = series[0].get_axes(squeeze=False), series[0].get_shape(squeeze=False)
    lead = [int(size) for size in shape[: len(axes.rstrip("S")) - 2]] if axes.rstrip("S").endswith("YX") else []
    text = ome.in_order(text)
    place = axes.find("C")
    separate = len(series) == 1 and math.prod(lead) == len(ordered) and 0 <= place < len(lead) and lead[place] > 1
    if not separate or file.pages.first.samplesperpixel > 1:
        return _plain(ordered, text)
    return _grouped(ordered, tuple(lead), place, (text, ome.in_order(text, channels_first=True)))
