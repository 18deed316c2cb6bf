"""A training opens each image and mask once before its first step; twice where the memory is too small to keep them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile

SMALL = ["--patch=16", "--batch-size=1", "--depth=2", "--initial-filters=4", "--convnext-version=v1"]

# Counts the times that files are opened until the first step is done.
CODE = """
import json, os, sys
from collections import Counter

opened, seen = Counter(), {}

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened[os.path.realpath(os.fsdecode(arguments[0]))] += 1

sys.addaudithook(count)
import keras
from dl_techniques.cli import main

step = keras.callbacks.CallbackList.on_train_batch_end

def end(self, *arguments, **options):
    seen.setdefault("opened", dict(opened))
    return step(self, *arguments, **options)

keras.callbacks.CallbackList.on_train_batch_end = end
folder, *arguments = sys.argv[1:]
assert main(arguments) == 0
print()
print(json.dumps({path: times for path, times in seen["opened"].items() if path.startswith(folder)}))
"""


@pytest.mark.parametrize("pages", [1, 6], ids=["files", "a stack"])
@pytest.mark.parametrize("memory", ["4", "0"], ids=["in memory", "no memory"])
def test_files_are_opened_once_before_the_first_step(pages, memory, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path.resolve() / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for index in range(3 if pages == 1 else 1):
        images = rng.integers(0, 255, (pages, 20, 24), dtype="uint8")
        tifffile.imwrite(data / "images" / f"{index}.tif", images.squeeze(), photometric="minisblack")
        tifffile.imwrite(data / "masks" / f"{index}.tif", np.uint8(images > 127).squeeze(), photometric="minisblack")
    steps = ["--steps=3", "--steps-per-epoch=3"] if memory != "0" else ["--steps=1", "--steps-per-epoch=1"]
    arguments = ["train", "segment", f"--images={data / 'images'}", f"--masks={data / 'masks'}", *SMALL, *steps]
    arguments += [f"--cache-gb={memory}", f"--output={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", CODE, str(data), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout.splitlines()[-1])
    files = {path: opened.get(str(path), 0) for path in data.glob("*/*.tif")}
    assert len(files) == (6 if pages == 1 else 2) and all(files.values())
    assert max(files.values()) <= (1 if memory != "0" else 2), files
