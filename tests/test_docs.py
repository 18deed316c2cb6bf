"""What our documents tell to type is typed, in a folder with a trained run and images; their links lead somewhere."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dl_techniques.cli import app, main
from dl_techniques.cli.training import planned_settings
from dl_techniques.datasets.samples import NUCLEI
from test_runtime import without_keras

pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of the others, which tell of trainings, commands are parsed and Python runs.
TYPED = ["README.md", "predict.md", "export.md", "deploy.md"]
BLOCK = re.compile(r"^([^\n]*)\n+```(bash|python)\n(.*?)^```", flags=re.M | re.S)
MARK = re.compile(r"<!-- not run: (needs a network|trains for minutes) -->$")
RUN = ["--steps", "12", "--steps-per-epoch", "6", "--patch", "32", "--depth", "2", "--initial-filters", "4"]


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """Return the language, the content and, where it is not to be run, the reason of each block of a document."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    marks = [(MARK.search(before), language, content) for before, language, content in found]
    return [(language, content, mark[1] if mark else "") for mark, language, content in marks]


def commands(block: str) -> list[list[str]]:
    """Return the words of each command of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def texture(seed: int, side: int = 96) -> np.ndarray:
    """Return grey noise whose spectrum falls as that of photographs does."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise = np.random.default_rng(seed).normal(size=(side, side))
    soft = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
    return np.uint8(255 * (soft - soft.min()) / np.ptp(soft))


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder as the documents suppose it: a run of `train segment`, images and masks."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("scans", "slides", "images", "masks", "photos"):
        (folder / name).mkdir()
    for number, path in enumerate(sorted((NUCLEI / "image").glob("*.png"))[:4]):
        with Image.open(path) as image, Image.open(NUCLEI / "label" / path.name) as mask:
            crop, inside = (file.crop((40, 60, 112, 124)) for file in (image, mask))
        crop.save(folder / "scans" / f"{number}.png")
        crop.save(folder / "slides" / f"{number}.tif")
        crop.save(folder / "images" / f"{number}.png")
        inside.point(lambda value: 255 * (value > 0)).save(folder / "masks" / f"{number}.png")
    for name in ("scan.png", "scan.tif", "slide.tif"):
        crop.save(folder / name)
    Image.merge("RGB", [crop] * 3).save(folder / "photo.png")
    for seed in range(4):
        Image.fromarray(texture(seed)).save(folder / "photos" / f"{seed}.png")
    sources = [f"--images={folder / 'images'}", f"--masks={folder / 'masks'}"]
    assert main(["train", "segment", *sources, "-o", str(folder / "run"), *RUN, "--batch-size", "2"]) == 0
    return folder


@pytest.mark.only_backend("tensorflow")  # makes every export
@pytest.mark.parametrize("name", TYPED)
def test_blocks_run_as_they_stand(name, desk, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    monkeypatch.chdir(folder)
    namespace: dict = {}
    for language, content, reason in blocks(ROOT / name if name == "README.md" else ROOT / "docs" / name):
        if language == "python":
            exec(compile(content, name, "exec"), namespace)  # noqa: S102
        elif not reason:
            for words in commands(content):
                run(words, folder, capfd)


def run(words: list[str], folder: Path, capfd) -> None:
    """Run a command; what it names as its result lies there afterwards."""
    output = folder / words[words.index("-o") + 1] if "-o" in words else folder
    if output.is_dir() and output != folder:
        shutil.rmtree(output)  # of the line before
    if words[:2] == ["convunext", "page"]:
        serve(words[1:], folder)
    elif words[0] == "convunext":
        status = main(words[1:])
        assert status == 0, capfd.readouterr().err
    else:
        assert words[0] == "runtime/bin/convunext", words
        done = without_keras(*words[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
    assert output.exists() and (output.is_file() or any(output.iterdir()))


def serve(arguments: list[str], folder: Path) -> None:
    """Start the page, ask for it, and stop it as Ctrl-C does."""
    command = [sys.executable, "-m", "dl_techniques.cli", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        addresses = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stdout)
        with urllib.request.urlopen(next(filter(None, addresses))[0], timeout=300) as page:
            assert b"ConvUNext" in page.read()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
        assert process.returncode in (0, 130)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name not in TYPED], ids=lambda path: path.name)
def test_python_of_other_documents_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, content, _ in blocks(path):
        if language == "python":
            exec(compile(content, str(path), "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_understood(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('[settings]\nimages = "images"\nmasks = "masks"\n')
    for language, content, _ in blocks(path):
        for words in commands(content) if language == "bash" else []:
            if any(word.endswith("convunext") for word in words):
                tokens = words[[word.endswith("convunext") for word in words].index(True) + 1 :]
                monkeypatch.setattr(app, "config", planned_settings(tokens))
                app.parse_args(tokens, exit_on_error=False, print_error=True)


def test_few_blocks_are_not_run():
    left = {path.name: [reason for *_, reason in blocks(path) if reason] for path in DOCUMENTS}
    assert {name: len(reasons) for name, reasons in left.items() if reasons} == {"README.md": 3, "deploy.md": 2}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- not run") == len(left[path.name]), "a mark that is before no block, or is not known"
        assert set(re.findall(r"^```(\w+)", text, flags=re.M)) <= {"bash", "python", "text"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_files_of_our_documents_exist(path):
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"`?make ([a-z]+)", text)) <= targets
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
