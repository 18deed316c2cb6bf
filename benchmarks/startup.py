"""How long `convunext predict` takes for one image, from the command to the end, by engine.

Run: `python benchmarks/startup.py --markdown docs/performance.md` (extras openvino and onnx). Engines take turns. The
first run of each converts the model and warms the disk; it is reported by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dl_techniques.images.files import Picture, write_image
from tables import replace_section

ENGINES = {
    "default": [],
    "Keras": ["--engine", "keras"],
    "OpenVINO": ["--engine", "openvino"],
    "ONNX Runtime": ["--engine", "onnxruntime"],
}


def measure(engines: Sequence[str], model: str, side: int, turns: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each engine, the first included.

    Args:
        engines: Keys of `ENGINES`.
        model: As `convunext predict --model` takes it, for grey images.
        side: Height and width of the image, in pixels.
        turns: Runs of each after the first.
    """
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image = folder / "image.png"
        write_image(image, Picture(np.random.default_rng(0).integers(0, 256, (side, side, 1), dtype="uint8")))
        environment = {**os.environ, "CONVUNEXT_CACHE": str(folder / "cache")}
        for turn in range(turns + 1):
            for engine in engines:
                output = folder / f"{engine}-{turn}.png"
                options = ["-o", str(output), *ENGINES[engine]]
                command = [sys.executable, "-m", "dl_techniques.cli", "predict", model, str(image), *options]
                start = time.perf_counter()
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                seconds[engine].append(time.perf_counter() - start)
                if done.returncode or not output.is_file():
                    raise SystemExit(f"{engine}: {done.stderr.strip() or done.stdout.strip()}")
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Return the runs as a Markdown table."""
    lines = ["| engine | wall time (s) | least–most | first run (s) |", "| --- | ---: | ---: | ---: |"]
    for engine, (first, *others) in seconds.items():
        median = statistics.median(others)
        lines.append(f"| {engine} | {median:.2f} | {min(others):.2f}–{max(others):.2f} | {first:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--model", default="denoise-gray", help="a preset or model for grey images")
    parser.add_argument("--side", type=int, default=512, help="height and width of the image, in pixels")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--markdown", type=Path, help="document whose section `startup` to replace")
    options = parser.parse_args()
    found = table(measure(options.engines, options.model, options.side, options.turns))
    print(found)
    if options.markdown:
        replace_section(options.markdown, "startup", found)


if __name__ == "__main__":
    main()
