"""The plan of the house says what the folders hold."""

import pathlib
import re

from tests.test_imports import FLOORS, LEVELS, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(title):
    """`{name: number}` of the table under a title: a number, and names between backticks."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| (\d) \| (.*?) \|", section, re.MULTILINE)
    return {name: int(number) for number, names in found for name in re.findall(r"`(\w+)`", names)}


def modules(folder):
    """What lies in a folder: modules, and packages."""
    found = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    return found - {"__init__"}


def test_the_levels_are_those_of_the_library():
    assert rows("Levels of the library") == {k: v for k, v in LEVELS.items() if k != "__init__"}
    assert set(rows("Levels of the library")) == modules(ROOT / "jaxsparse")


def test_the_rooms_are_those_of_the_experiments():
    assert rows("Rooms of the experiments") == FLOORS
    assert set(FLOORS) == modules(ROOT / "experiments" / "common")


def test_the_files_that_it_names_are_there():
    named = re.findall(r"`([\w/]+\.py)`", PAGE.split("## What comes next")[0])
    homes = [ROOT, ROOT / "jaxsparse", ROOT / "jaxsparse" / "algorithms"]
    missing = [n for n in named if not any(pathlib.Path(home, n).exists() for home in homes)]
    assert len(named) > 8 and set(missing) <= {"nnx.py", "_name.py"}
