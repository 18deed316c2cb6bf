"""Kill a training at random moments, resume it, and hold its end against that of a run that was never stopped.

    python benchmarks/chaos.py --kills 20

SIGKILL comes within steps, while a checkpoint is written, or during validation, wherever the clock has it; then
`convunext train --resume` goes on, is killed again, and so on until the run ends. Every number of the last checkpoint
(weights, optimizer, moving average) and every line of the log must be the same. Prints where each kill came.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dl_techniques.training.checkpoint import list_checkpoints, load_checkpoint

COMMAND = [sys.executable, "-m", "dl_techniques.cli", "train"]
STEPS, PER_EPOCH = 60, 5


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(6):
        smooth = np.kron(rng.uniform(0, 255, (6, 6)), np.ones((16, 16)))
        Image.fromarray(smooth.astype("uint8")).save(folder / f"{index}.png")


def first_command(images: Path, output: Path, steps: int = STEPS) -> list[str]:
    settings = {
        "images": images, "output": output, "steps": steps, "steps-per-epoch": PER_EPOCH, "patch": 32,
        "final-patch": 48, "batch-size": 2, "held-out": 2, "depth": 2, "initial-filters": 8,
    }  # fmt: skip
    return [*COMMAND, "denoise", *(f"--{name}={value}" for name, value in settings.items())]


def run_for(command: list[str], seconds: float | None) -> bool:
    """Run a command, killed after some seconds, and return whether it came to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images")
        whole = folder / "whole"
        start = time.perf_counter()
        run_for(first_command(folder / "images", whole), None)
        length = time.perf_counter() - start
        _, expected, _ = load_checkpoint(whole / "checkpoints")
        rng, kills, runs = random.Random(arguments.seed), 0, 0
        while kills < arguments.kills:
            runs += 1
            output = folder / f"killed-{runs}"
            command = first_command(folder / "images", output)
            while not run_for(command, rng.uniform(0.3, 1.0) * length if kills < arguments.kills else None):
                kills += 1
                found = list_checkpoints(output / "checkpoints")
                newest = found[0].name[5:14].lstrip("0") if found else "no"
                left = sorted(path.name for path in output.rglob("*.tmp")) if output.exists() else []
                print(f"kill {kills}: newest checkpoint: {newest} of {STEPS} steps; left over: {left}", flush=True)
                if output.exists():
                    command = [*COMMAND, "--resume", str(output)]
            _, state, torn = load_checkpoint(output / "checkpoints")
            same = expected.keys() == state.keys() and all(np.array_equal(expected[n], state[n]) for n in expected)
            log = (output / "log.csv").read_text() == (whole / "log.csv").read_text()
            print(f"run {runs}: weights and state {'equal' if same else 'DIFFER'}, log {'equal' if log else 'DIFFERS'}")
            if not (same and log) or torn:
                raise SystemExit(1)
    print(f"{kills} kills, {runs} runs, all equal to the one that was never stopped")


if __name__ == "__main__":
    main()
