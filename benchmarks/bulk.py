"""Prediction through Ray against the local command, and over so many images that a leak would show.

    python benchmarks/bulk.py speed --count 400 --side 256
    python benchmarks/bulk.py memory --count 10000 --plot docs/img/bulk_memory.svg

`speed` runs both commands on the same images, whole and for images already done, and takes the difference: images a
second without the start. `memory` makes small images, one in a hundred of them broken, samples the resident memory of
the command that hands them out, and runs it again, when nothing is left to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

PREDICT = [sys.executable, "-m", "dl_techniques.cli", "predict"]


def make_images(folder: Path, count: int, side: int, broken: int = 0) -> None:
    """Write images of noise; every `broken`-th is cut off in the middle."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index:07}.png"
        Image.fromarray(rng.integers(0, 256, (side, side), dtype="uint8")).save(path)
        if broken and index % broken == broken // 2:
            path.write_bytes(path.read_bytes()[: side * side // 2])


def run(*arguments: object, samples: list[tuple[float, float]] | None = None) -> float:
    """Run a prediction and return its seconds; take samples of seconds and resident MB of its process alone."""
    start = time.perf_counter()
    told = tempfile.TemporaryFile("w+")  # a pipe that nobody reads fills up
    with told, subprocess.Popen([*PREDICT, *map(str, arguments)], stdout=told, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                if samples is not None:
                    samples.append((time.perf_counter() - start, watched.memory_info().rss / 1e6))
                process.wait(0.5)
            except (subprocess.TimeoutExpired, psutil.NoSuchProcess):
                continue
        seconds = time.perf_counter() - start
        told.seek(0)
        print(f"{seconds:7.1f} s  {told.read().strip().splitlines()[-2:]}", flush=True)
    return seconds


def speed(options: argparse.Namespace, folder: Path) -> None:
    make_images(folder / "in", options.count, options.side)
    rates: dict[str, list[float]] = {"local": [], "ray": []}
    for name, flags in [("local", []), ("ray", ["--ray"])] * options.repeats:
        common = [options.model, folder / "in", "-o", folder / name, "--overwrite", *flags]
        some = [options.model, *sorted((folder / "in").iterdir())[:8], *common[2:]]
        least = run(*some)
        rates[name].append((options.count - 8) / (run(*common) - least))
    for path in sorted((folder / "local").iterdir()):
        if path.read_bytes() != (folder / "ray" / path.name).read_bytes():
            raise SystemExit(f"{path.name} differs")
    local, ray = (float(np.median(values)) for values in rates.values())
    print(f"{options.count} images of {options.side}x{options.side}, the same bytes; images/s without the start:")
    print(f"local {local:.2f}, --ray {ray:.2f}, ratio {ray / local:.2f}")


def memory(options: argparse.Namespace, folder: Path) -> None:
    make_images(folder / "in", options.count, options.side, broken=100)
    samples: list[tuple[float, float]] = []
    command = [options.model, folder / "in", "-o", folder / "out", "--ray"]
    run(*command, samples=samples)
    run(*command)
    table = pq.read_table(folder / "out" / "status.parquet")
    results = sum(path.suffix == ".png" for path in (folder / "out").iterdir())
    print(f"{results} results, rows: {dict(Counter(table['state'].to_pylist()))}")
    seconds, resident = np.array(samples).T
    quarter = [resident[seconds > seconds[-1] * part].max() for part in (0.25, 0.75)]
    middle = np.median(resident[(seconds > seconds[-1] * 0.25) & (seconds < seconds[-1] * 0.5)])
    end = np.median(resident[seconds > seconds[-1] * 0.75])
    print(f"resident MB of the driver: second quarter {middle:.0f}, last quarter {end:.0f}, most {max(quarter):.0f}")
    if options.plot:
        plot(options.plot, seconds, resident, options.count)


def plot(path: Path, seconds: np.ndarray, resident: np.ndarray, count: int) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bulk"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot(seconds, resident, linewidth=1)
    axes.set(xlabel="seconds", ylabel="resident MB", ylim=(0, None), title=f"the driver, {count:,} images")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--model", default="denoise-gray")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (speed if options.what == "speed" else memory)(options, Path(folder))


if __name__ == "__main__":
    main()
