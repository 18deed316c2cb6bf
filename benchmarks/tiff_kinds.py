"""Write TIFFs of many kinds with the tools that people use, denoise each, and compare what the result says of itself.

    pip install "pyvips[binary]" rasterio
    python benchmarks/tiff_kinds.py --markdown docs/predict.md

Every plane, axis, tag and unit must come out as it went in; where a result has them otherwise on purpose, the
prediction must have said so. Planes are matched by their pixels, so that an exchanged order is found.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from dl_techniques.errors import ConvUNextError
from dl_techniques.inference.files import create_predictor, predict_file
from dl_techniques.inference.settings import PredictionOptions
from tables import replace_section

HEIGHT, WIDTH = 96, 80
GEO = (33550, 33922, 34264, 34735, 34736, 34737)
Write = Callable[[Path], Any]


class Kind(NamedTuple):
    """A TIFF to write: the tool, what it is, the function, the facts that change on purpose, and words that say so."""

    tool: str
    what: str
    write: Write
    changed: tuple[str, ...] = ()
    said: str = ""


def planes(*lead: int, dtype: str = "uint8", last: int = 0) -> np.ndarray:
    """Return planes of blobs, each with its own, and mild noise, of the shape `(*lead, HEIGHT, WIDTH[, last])`."""
    count = int(np.prod(lead)) * max(last, 1)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = np.empty((count, HEIGHT, WIDTH))
    for number in range(count):
        rng = np.random.default_rng(number)
        inside = np.zeros((HEIGHT, WIDTH), bool)
        for _ in range(6):
            top, left, radius = rng.uniform(8, HEIGHT - 8), rng.uniform(8, WIDTH - 8), rng.uniform(5, 12)
            inside |= (rows - top) ** 2 + (columns - left) ** 2 < radius**2
        made[number] = np.clip(60 + 120 * inside + rng.normal(0, 6, inside.shape), 0, 255)
    scale = {"uint16": 100, "int16": 100, "float32": 0.37}.get(dtype, 1)
    made = (made * scale).astype(dtype).reshape(*lead, max(last, 1), HEIGHT, WIDTH)
    return np.moveaxis(made, -3, -1) if last else made[..., 0, :, :]


# === Writers ===


def tiff(array: np.ndarray, **options: Any) -> Write:
    return lambda path: tifffile.imwrite(path, array, **options)


def pyramid(path: Path) -> None:
    full = planes(1, dtype="uint16")[0]
    with tifffile.TiffWriter(path, ome=True) as file:
        told = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
        file.write(full, subifds=1, tile=(32, 32), metadata=told)
        file.write(full[::2, ::2], subfiletype=1, tile=(32, 32))


def aperio(path: Path) -> None:
    full = planes(last=3)
    with tifffile.TiffWriter(path) as file:
        for step in (1, 8, 4):
            file.write(full[::step, ::step], photometric="rgb", tile=(32, 32), metadata=None)


def holes(path: Path) -> None:
    image = planes(1, dtype="float32")[0]
    image[30:50, 20:40] = np.nan
    tifffile.imwrite(path, image, imagej=True, metadata={"unit": "nm"})


def pillow(mode: str, **options: Any) -> Write:
    from PIL import Image

    def write(path: Path) -> None:
        count = options.get("pages", 1)
        channels = {"RGB": 3, "RGBA": 4}.get(mode, 0)
        given = [planes(count, dtype="uint16" if mode == "I;16" else "uint8", last=channels)[n] for n in range(count)]
        if mode == "RGBA":
            given[0][..., 3] = 255
        images = [Image.fromarray(255 * (x > 120).astype("uint8") if mode == "1" else x) for x in given]
        images = [image.convert("1") if mode == "1" else image for image in images]
        kept = {key: value for key, value in options.items() if key != "pages"}
        images[0].save(path, save_all=count > 1, append_images=images[1:], **kept)

    return write


def vips(dtype: str = "uint8", last: int = 0, pages: int = 1, **options: Any) -> Write:
    def write(path: Path) -> None:
        import pyvips  # pyright: ignore[reportMissingImports]

        array = planes(pages, dtype=dtype, last=last)
        array = array.reshape(pages * HEIGHT, WIDTH, max(last, 1))
        image = pyvips.Image.new_from_array(array).copy(xres=20.0, yres=20.0)
        if last == 3:
            image = image.copy(interpretation="srgb")
        if pages > 1:
            image = image.copy()
            image.set_type(pyvips.GValue.gint_type, "page-height", HEIGHT)
        image.tiffsave(str(path), **options)

    return write


def gdal(bands: int, dtype: str, driver: str = "GTiff", nodata: float | None = None, **options: Any) -> Write:
    def write(path: Path) -> None:
        import rasterio  # pyright: ignore[reportMissingImports]
        from rasterio.transform import from_origin  # pyright: ignore[reportMissingImports]

        array = planes(bands, dtype=dtype)
        if nodata is not None:
            array[:, 20:40, 30:50] = nodata
        place = {"crs": "EPSG:32633", "transform": from_origin(4e5, 5e6, 10.0, 10.0)}
        shape = {"height": HEIGHT, "width": WIDTH, "count": bands, "dtype": dtype}
        with rasterio.open(path, "w", driver=driver, nodata=nodata, **shape, **place, **options) as file:
            file.write(array)
            file.update_tags(SENSOR="ours")

    return write


UNITS: dict[str, Any] = {"resolution": (4.0, 4.0), "metadata": {"axes": "ZYX", "unit": "um", "spacing": 0.5}}
PHYSICAL = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 0.5, "PhysicalSizeZUnit": "µm"}
COMPOSITE = {
    "axes": "TZCYX",
    "mode": "composite",
    "unit": "um",
    "finterval": 0.5,
    "Labels": [f"p{n}" for n in range(12)],
}
LUT = np.stack([np.zeros(256), np.arange(256) * 257, np.zeros(256)]).astype("uint16")
RGB, STACK = planes(last=3), planes(6)
KINDS = (
    Kind("tifffile", "grey, 8 bits", tiff(planes(1)[0], resolution=(300, 200), resolutionunit=2)),
    Kind(
        "tifffile",
        "grey, 16 bits, big-endian, LZW",
        tiff(planes(1, dtype="uint16")[0], byteorder=">", compression="lzw"),
    ),
    Kind(
        "tifffile",
        "grey, float32, floating-point predictor",
        tiff(planes(1, dtype="float32")[0], compression="zlib", predictor=3),
    ),
    Kind("tifffile", "grey, int16", tiff(planes(1, dtype="int16")[0]), ("dtype",), "int16 read as float32"),
    Kind(
        "tifffile",
        "RGB, planes apart",
        tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"),
        ("storage", "axes", "shape"),
    ),
    Kind(
        "tifffile",
        "BigTIFF, tiles, zstd",
        tiff(planes(1, dtype="uint16")[0], bigtiff=True, tile=(32, 32), compression="zstd"),
    ),
    Kind("tifffile", "stack", tiff(STACK, photometric="minisblack")),
    Kind("tifffile", "stack behind one page", tiff(STACK, photometric="minisblack", truncate=True)),
    Kind(
        "tifffile",
        "axes TZYX",
        tiff(planes(2, 3), photometric="minisblack", metadata={"axes": "TZYX", "name": "series"}),
    ),
    Kind("tifffile", "axes ZCYX", tiff(planes(3, 2), photometric="minisblack", metadata={"axes": "ZCYX"})),
    Kind("tifffile", "shape (height, width, 2)", tiff(planes(last=2)), ("storage", "axes")),
    Kind("tifffile", "boolean", tiff(planes(1)[0] > 120), ("dtype", "inverted", "storage")),
    Kind(
        "tifffile",
        "0 as white, 16 bits",
        tiff(65535 - planes(1, dtype="uint16")[0], photometric="miniswhite"),
        ("inverted", "storage"),
    ),
    Kind("ImageJ", "stack with units", tiff(STACK, imagej=True, **UNITS)),
    Kind("ImageJ", "stack behind one page", tiff(STACK, imagej=True, truncate=True, **UNITS)),
    Kind(
        "ImageJ", "composite hyperstack, labels", tiff(planes(2, 3, 2, dtype="uint16"), imagej=True, metadata=COMPOSITE)
    ),
    Kind("ImageJ", "stack of RGB", tiff(planes(3, last=3), imagej=True, metadata={"axes": "ZYXS"})),
    Kind("ImageJ", "float32 with NaN", holes),
    Kind("ImageJ", "green table of colours", tiff(planes(1)[0], imagej=True, colormap=LUT)),
    Kind(
        "OME",
        "Z stack with sizes",
        tiff(STACK, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **PHYSICAL}),
    ),
    Kind(
        "OME",
        "TCZYX, 16 bits",
        tiff(
            planes(2, 2, 3, dtype="uint16"),
            ome=True,
            photometric="minisblack",
            metadata={"axes": "TCZYX", "Channel": {"Name": ["DAPI", "GFP"]}, **PHYSICAL},
        ),
    ),
    Kind("OME", "RGB", tiff(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 0.5})),
    Kind("OME", "pyramid in SubIFDs", pyramid, ("levels",), "smaller copies"),
    Kind("Aperio's order", "levels without a flag", aperio, ("levels",), "smaller copies"),
    Kind("Pillow", "grey with dpi", pillow("L", dpi=(300, 200), compression="tiff_lzw")),
    Kind("Pillow", "pages, 16 bits", pillow("I;16", pages=4)),
    Kind("Pillow", "1 bit, CCITT group 4", pillow("1", compression="group4"), ("dtype", "inverted", "storage")),
    Kind("Pillow", "RGB with alpha", pillow("RGBA", compression="tiff_deflate")),
    Kind(
        "libvips",
        "RGB, JPEG tiles, pyramid",
        vips(last=3, tile=True, pyramid=True, compression="jpeg", tile_width=64, tile_height=64),
        ("levels", "storage"),
        "smaller copies",
    ),
    Kind(
        "libvips",
        "float, tiles, deflate",
        vips("float32", tile=True, compression="deflate", tile_width=64, tile_height=64),
    ),
    Kind("libvips", "pages, LZW with predictor", vips("uint16", pages=3, compression="lzw", predictor="horizontal")),
    Kind("GDAL", "float32 with nodata", gdal(1, "float32", nodata=-9999.0, compress="deflate")),
    Kind("GDAL", "uint16 with nodata 0, tiles", gdal(1, "uint16", nodata=0, tiled=True, blockxsize=64, blockysize=64)),
    Kind(
        "GDAL",
        "RGB, JPEG as YCbCr",
        gdal(
            3,
            "uint8",
            photometric="YCBCR",
            compress="jpeg",
            interleave="pixel",
            tiled=True,
            blockxsize=64,
            blockysize=64,
        ),
        ("storage",),
    ),
    Kind("GDAL", "4 bands, planes apart", gdal(4, "uint16", interleave="band"), ("storage", "axes", "shape")),
    Kind(
        "GDAL",
        "cloud-optimized, overviews",
        gdal(1, "uint16", "COG", blocksize=128, overview_count=2, overviews="AUTO"),
        ("levels",),
    ),
)


# === Comparison ===


def facts(path: Path) -> dict[str, Any]:
    """Return what a TIFF says of its samples, axes, units and tags, as tifffile reads them."""
    with tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        tags = {tag.code: tag.value for tag in page.tags}
        imagej = dict(file.imagej_metadata or {})
        found = {
            "axes": series.axes.replace("Q", "I"),
            "shape": series.shape,
            "dtype": str(series.dtype),
            "levels": len(series.levels) if len(file.series) == 1 else len(file.series),
            "storage": (str(page.photometric), str(page.planarconfig)),
            "resolution": tuple(round(tags[code][0] / tags[code][1], 3) for code in (282, 283) if code in tags),
            "unit": int(tags.get(296, 2)),
            "ImageJ": {key: str(value) for key, value in imagej.items() if key != "images"},
            "OME": sorted(re.findall(r'\b((?:PhysicalSize|Size)\w+="[^"]*"|Name="[^"]*")', file.ome_metadata or "")),
            "geo": {code: str(tags[code]) for code in GEO if code in tags},
            "nodata": tags.get(42113),
            "words of GDAL": tags.get(42112),
            "colours": None if page.colormap is None else page.colormap.tolist(),
        }
        if page.photometric == 0:
            found["inverted"] = True
        if found["resolution"] == (1.0, 1.0) and found["unit"] == 1:  # what TIFF demands where nothing is known
            found |= {"resolution": (), "unit": 2}
        return found


def pixels(path: Path) -> np.ndarray:
    """Return all planes at full size, `(planes, height · width)`, each of one channel."""
    with tifffile.TiffFile(path) as file:
        array, axes = file.series[0].asarray(), file.series[0].axes
        if file.pages.first.photometric == 0:
            array = ~array
    array = np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array[..., None]
    if array.ndim == 4 and array.shape[1:] == (WIDTH, 2, 1):
        array = array[..., 0]  # of narrow pages
    array = array.reshape(-1, HEIGHT, WIDTH, array.shape[-1])
    return np.moveaxis(array, -1, 1).reshape(-1, HEIGHT * WIDTH).astype("float64")


def compare(kind: Kind, source: Path, result: Path, notes: str) -> list[str]:
    """Return in words what is different in the result."""
    before, after = facts(source), facts(result)
    wrong = [name for name in before if before[name] != after.get(name) and name not in kind.changed]
    if kind.said and kind.said not in notes:
        wrong.append(f"not said: {kind.said}")
    old, new = pixels(source), pixels(result)
    if old.shape != new.shape:
        return [*wrong, f"{len(new)} planes of {len(old)}"]
    gone = ~np.isfinite(old) | (old == before_nodata(before))
    if (np.nan_to_num(old[gone], nan=-1.0) != np.nan_to_num(new[gone], nan=-1.0)).any():
        wrong.append("samples without data")
    varied = [n for n in range(len(old)) if old[n][~gone[n]].std() > 0]
    match = np.corrcoef(np.where(gone, 0.0, old)[varied], np.where(gone, 0.0, new)[varied])[
        len(varied) :, : len(varied)
    ]
    if (match.argmax(axis=1) != np.arange(len(varied))).any() or np.diag(match).min() < 0.95:
        wrong.append("order of planes or their samples")
    if (old[varied] == new[varied]).all(axis=1).any():
        wrong.append("a plane left as it was")
    return wrong


def before_nodata(found: dict[str, Any]) -> float:
    return np.nan if found["nodata"] is None else float(found["nodata"])


def main() -> None:
    """Write, denoise and compare all kinds; end with an error if anything is different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="document whose section `tiff-kinds` gets the table")
    parser.add_argument("--only", default="", help="part of the names of the kinds to try")
    options = parser.parse_args()
    predictor = create_predictor("denoise-gray", PredictionOptions(output=Path("out"), engine="keras"))
    rows, failed = ["| written by | what | planes | axes | result |", "|---|---|---|---|---|"], 0
    with tempfile.TemporaryDirectory() as name:
        for number, kind in enumerate(KINDS):
            if options.only not in f"{kind.tool} {kind.what}":
                continue
            source, result = Path(name) / f"{number}.tif", Path(name) / f"{number}-out.tif"
            kind.write(source)
            told, count = facts(source), "–"
            try:
                report = predict_file(predictor, source, result, PredictionOptions(output=result), lambda *_: None)
                wrong, notes = compare(kind, source, result, "; ".join(report.notes)), "; ".join(report.notes)
                count = str(len(pixels(source)))
            except ConvUNextError as error:
                wrong, notes = [str(error)], ""
            failed += bool(wrong)
            said = f"different: {', '.join(wrong)}" if wrong else "kept" + (f"; said: {notes}" if notes else "")
            rows.append(f"| {kind.tool} | {kind.what} | {count} | {told['axes']} | {said} |")
            print(rows[-1], flush=True)
    if options.markdown:
        replace_section(options.markdown, "tiff-kinds", "\n".join(rows))
    if failed:
        raise SystemExit(f"{failed} kinds are different.")


if __name__ == "__main__":
    main()
