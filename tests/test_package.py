"""What a release holds: asked of setuptools, without building one."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jaxsparse

ROOT = Path(__file__).parents[1]
pytest.importorskip("setuptools")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The files of the sdist and those of the wheel."""
    folder = tmp_path_factory.mktemp("release")
    commands = ["egg_info", "--egg-base", folder, "build", "--build-base", folder / "build"]
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *map(str, commands)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    sdist = (folder / "jaxsparse.egg-info" / "SOURCES.txt").read_text().splitlines()
    library = folder / "build" / "lib"
    wheel = [p.relative_to(library).as_posix() for p in library.rglob("*") if p.is_file()]
    return {"sdist": set(sdist), "wheel": set(wheel)}


def library():
    found = (ROOT / "jaxsparse").rglob("*")
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_the_wheel_is_the_library(release):
    """Its types and its C++ with it, and nothing else."""
    assert release["wheel"] == library()
    assert {
        "jaxsparse/py.typed",
        "jaxsparse/_cpu/products.cc",
        "jaxsparse/sparse/costs.json",
    } <= release["wheel"]


def test_the_sdist_is_the_library_and_what_goes_with_it(release):
    written = {path for path in release["sdist"] if ".egg-info/" not in path}
    pages = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
    assert library() | pages <= written
    assert written - library() - pages <= {"MANIFEST.in", "setup.cfg", "setup.py"}


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxsparse.__version__)
    assert metadata.version("jaxsparse") == jaxsparse.__version__
    assert f"## {jaxsparse.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert jaxsparse.__version__ not in (ROOT / "setup.cfg").read_text()
