"""A training opens each image and mask once before its first step; twice where the memory is too small to keep them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

SMALL = ["--patch=16", "--batch-size=1", "--depth=2", "--initial-filters=4", "--convnext-version=v1"]

# Counts the times that files are opened until the first step is done, of one training after the other.
CODE = """
import json, os, sys
from collections import Counter

opened, seen = Counter(), {}

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened[os.path.realpath(os.fsdecode(arguments[0]))] += 1

sys.addaudithook(count)
import keras, tensorflow
from dl_techniques.cli import main

tensorflow.config.run_functions_eagerly(True)  # nothing is traced for the few steps

step = keras.callbacks.CallbackList.on_train_batch_end

def end(self, *arguments, **options):
    seen.setdefault("opened", dict(opened))
    return step(self, *arguments, **options)

keras.callbacks.CallbackList.on_train_batch_end = end
counts = []
for arguments in json.loads(sys.argv[1]):
    opened.clear()
    seen.clear()
    assert main(arguments) == 0
    counts.append(seen["opened"])
print()
print(json.dumps(counts))
"""
CASES = [(pages, memory) for pages in (1, 6) for memory in (4, 0)]


def paint(folder: Path, pages: int) -> list[Path]:
    """Write three TIFF images and masks of one page, or one of each of several pages."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(3 if pages == 1 else 1):
        images = rng.integers(0, 255, (pages, 20, 24), dtype="uint8")
        for name, values in ("images", images), ("masks", np.uint8(images > 127)):
            tifffile.imwrite(folder / name / f"{index}.tif", values.squeeze(), photometric="minisblack")
    return sorted(folder.glob("*/*.tif"))


def test_files_are_opened_once_before_the_first_step(tmp_path):
    commands, files = [], []
    for pages, memory in CASES:
        data = tmp_path.resolve() / f"{pages} {memory}"
        files.append(paint(data, pages))
        steps = 3 if memory else 1
        arguments = ["train", "segment", f"--images={data / 'images'}", f"--masks={data / 'masks'}", *SMALL]
        arguments += [f"--steps={steps}", f"--steps-per-epoch={steps}", f"--cache-gb={memory}"]
        commands.append([*arguments, f"--output={data / 'run'}"])
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (pages, memory), paths, opened in zip(CASES, files, json.loads(done.stdout.splitlines()[-1]), strict=True):
        times = {path: opened.get(str(path), 0) for path in paths}
        assert len(times) == (6 if pages == 1 else 2) and all(times.values())
        assert max(times.values()) <= (1 if memory else 2), (pages, memory, times)
