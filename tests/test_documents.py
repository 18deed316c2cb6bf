"""What is named in texts that nothing else reads is there: files of the rooms, steps of contributing, the citation."""

import re
from pathlib import Path

import pytest

from dl_techniques import __version__

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dl_techniques"
FOLDERS = (ROOT, SOURCE)
PLACEHOLDERS = ("NAME", "TASK")


def table_of_rooms() -> dict[str, str]:
    """Return what the table of floors says each room holds."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| (.+?) \| (.+) \|$", text, flags=re.M)
    return {re.findall(r"`([^`]+)`", room)[0]: room + contents for room, contents in rows}


def test_architecture_names_each_file_of_each_room():
    rooms = table_of_rooms()
    for path in sorted(SOURCE.rglob("*.py")):
        folder = path.relative_to(SOURCE).parent
        if path.name in ("__init__.py", "__main__.py") or folder.parts[:1] == ("tasks",) and len(folder.parts) > 1:
            continue  # tasks and recipes are named by folder
        room = "training/recipes/" if "recipes" in folder.parts else f"{folder}/"
        row = rooms["errors.py" if path.name in rooms["errors.py"] else "losses.py"] if room == "./" else rooms[room]
        assert f"`{path.name}`" in row, path


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "docs/performance.md"])
def test_files_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`([\w./-]+/[\w./-]+\.(?:py|md|toml|txt|yaml))`", text):
        if not any(word in path for word in PLACEHOLDERS):
            assert any((folder / path).exists() for folder in FOLDERS), path


def test_citation_has_the_version_of_the_package():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
