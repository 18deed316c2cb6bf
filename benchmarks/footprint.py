"""Size of an environment that runs exported artifacts, made as docs/deploy.md says, by engine.

Run in the project's folder: `python benchmarks/footprint.py` (`--markdown docs/deploy.md` writes the table there,
`--whole` measures the install with TensorFlow, too). Sizes are of what lies in the environment's site-packages, pip and
setuptools left out, as `du` counts. Each environment then denoises an image and segments a folder with the artifacts of
its engine, which lie in the folder `--artifacts`: denoise.xml and nuclei.xml, denoise.onnx and nuclei.onnx.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from dl_techniques.images.files import Picture, write_image
from tables import replace_section

ROOT = Path(__file__).parents[1]
ENGINES = {"openvino": ".xml", "onnxruntime": ".onnx"}
RUN_AND_LIST = """
import sys
from dl_techniques.cli import main
status = main(sys.argv[1:])
found = {"keras", "tensorflow", "jax", "torch"} & set(sys.modules)
sys.exit(f"imported: {found}" if found else status)
"""


def documented_commands() -> list[str]:
    """Return the commands of docs/deploy.md that make the environment `runtime`."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    return re.findall(r"^(python -m venv runtime|runtime/bin/pip install .*?) *(?:#.*)?$", text, flags=re.M)


def make_environment(folder: Path, commands: list[str]) -> Path:
    """Run commands that make an environment called `runtime`, in `folder` instead."""
    for command in commands:
        words = command.replace("runtime/bin/", f"{folder}/bin/").replace("venv runtime", f"venv {folder}").split()
        words[0] = sys.executable if words[0] == "python" else words[0]
        subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def megabytes(folder: Path) -> float:
    """Return what the packages of an environment take on the disk, in MB."""
    tools = re.compile(r"(pip|setuptools|pkg_resources|_distutils_hack|wheel)\b")
    (packages,) = folder.glob("lib/python3*/site-packages")
    files = (file for part in packages.iterdir() if not tools.match(part.name) for file in (part, *part.rglob("*")))
    return sum(512 * file.lstat().st_blocks for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=Path, help="folder with denoise and nuclei as .xml and .onnx, to be run")
    parser.add_argument("--markdown", type=Path, help="document to write the table into")
    parser.add_argument("--whole", action="store_true", help="measure `pip install .`, with TensorFlow, too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        noise = np.random.default_rng(0).normal(128, 20, (200, 300, 1)).clip(0, 255).astype("uint8")
        write_image(folder / "noisy.png", Picture(noise))
        for engine, suffix in ENGINES.items():
            commands = [command.replace("openvino", engine) for command in documented_commands()]
            environment = make_environment(folder / engine, commands)
            rows.append((f"artifacts on {engine}", megabytes(environment)))
            if options.artifacts:
                models, image = options.artifacts.resolve(), str(folder / "noisy.png")
                denoiser, segmenter = (str(models / f"{name}{suffix}") for name in ("denoise", "nuclei"))
                for arguments in (
                    ["denoise", image, "-o", str(folder / f"{engine}.png"), "--model", denoiser],
                    ["predict", segmenter, image, "-o", str(folder / f"{engine}-masks")],
                ):
                    subprocess.run([environment / "bin" / "python", "-I", "-c", RUN_AND_LIST, *arguments], check=True)
        if options.whole:
            commands = ["python -m venv runtime", "runtime/bin/pip install -c constraints.txt ."]
            rows.append(("everything, TensorFlow", megabytes(make_environment(folder / "whole", commands))))
    lines = ["| environment | MB |", "| --- | ---: |", *(f"| {name} | {size:.0f} |" for name, size in rows)]
    print("\n".join(lines))
    if options.markdown:
        replace_section(options.markdown, "footprint", "\n".join(lines))


if __name__ == "__main__":
    main()
