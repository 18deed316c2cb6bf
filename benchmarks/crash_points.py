"""Kill a training at every file that it makes, renames or removes, resume it, compare the ends with ckpt-chaos (PyPI).

    python benchmarks/crash_points.py --modes before,torn,term

Each crash comes right before a change in the run's folder, in the middle of a file, or as SIGTERM. The command is then
given again, or `convunext train --resume` where the run had begun; the state of the last checkpoint and the log must be
those of a run that was never stopped. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import first_command, make_images
from dl_techniques.cli import main as convunext
from dl_techniques.training.checkpoint import list_checkpoints
from dl_techniques.training.run_folder import CONFIG, LOG


def train(images: Path, run: Path, steps: int) -> int:
    """Begin a run, or go on with it."""
    if (run / CONFIG).exists():
        return convunext(["train", "--resume", str(run)])
    return convunext(first_command(images, run, steps)[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="before,torn,term", help="of the crashes")
    parser.add_argument("--steps", type=int, default=10, help="of the run, five to an epoch")
    parser.add_argument("--train", nargs=2, type=Path, metavar=("IMAGES", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--end", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        images, run = arguments.train
        sys.exit(train(images, run, arguments.steps))
    if arguments.end:  # a checkpoint's name carries the digest of the state
        print(list_checkpoints(arguments.end / "checkpoints")[0].name, (arguments.end / LOG).read_text())
        return
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images")
        this = f"{sys.executable} {Path(__file__).resolve()} --steps {arguments.steps}"
        chaos = [sys.executable, "-m", "ckpt_chaos", "run", "--modes", arguments.modes, "--work", f"{folder}/work"]
        chaos += ["--step-regex", r"step (\d+) of", "--result-cmd", f"{this} --end {{out}}/run"]
        command = f"{this} --train {folder}/images {{out}}/run".split()
        sys.exit(subprocess.run([*chaos, "--", *command], check=False).returncode)


if __name__ == "__main__":
    main()
