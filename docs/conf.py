"""Settings of the site: `sphinx-build -W --keep-going -b html docs build/site`."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import jaxsparse

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "jaxsparse"
author = "The jaxsparse authors"
copyright = author
version = release = jaxsparse.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_use_legacy_class_based = False
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_param = False
napoleon_custom_sections = ["Differs from the paper"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"jaxsparse {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

# Docstrings are read in terminals and editors: `code` stands between single backticks.
CODE = re.compile(r"``[^`]+``|`([^`]+)`|([*|])")

INCLUDED = {
    "index": ROOT,
    "contributing": ROOT,
    "changelog": ROOT,
    "studies": ROOT / "experiments",
}
"""Pages that are files outside of docs/, with the folders that their links start from."""
PAGES = {
    ROOT / "README.md": "index",
    ROOT / "CONTRIBUTING.md": "contributing",
    ROOT / "CHANGELOG.md": "changelog",
    ROOT / "experiments" / "README.md": "studies",
}


def follow_links(app: Sphinx, doctree: nodes.document) -> None:
    """Links that are right on a code host lead to pages of the site, or to copied results.

    What is in the tree and not on the site (a folder of code, the licence) becomes plain text.
    """
    here = app.env.docname
    for link in list(doctree.findall(_is_link)):
        start = (DOCS / here).parent
        given = link["reftarget"].partition("#")[0]
        if isinstance(link, addnodes.pending_xref):
            start = INCLUDED.get(here, start)
            given += ".md" if link["refdomain"] else ""
        path = Path(os.path.normpath(start / given))
        if path in PAGES:
            link.replace_self(_to_page(link, PAGES[path], here))
        elif path.is_file() and path.is_relative_to(DOCS / "results"):
            uri = os.path.relpath(path, (DOCS / here).parent)
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))
        elif path.exists():
            link.replace_self(link.children)


def name_run(app: Sphinx, doctree: nodes.document) -> None:
    """The tables of a run are called by its folder, and name its page of pictures."""
    folder, _, page = app.env.docname.rpartition("/")
    if not (folder.startswith("results/") and page == "table"):
        return
    title = next(doctree.findall(nodes.title))
    line = nodes.paragraph("", f"{title.astext()}. ")
    title.children = []
    title += nodes.Text(folder.removeprefix("results/"))
    if (DOCS / folder / "report.html").exists():
        line += nodes.reference("", "Its page", refuri="report.html", internal=True)
        line += nodes.Text(" has the pictures and the verdict against the paper.")
    title.parent.insert(1, line)


def keep_errors(app: Sphinx, doctree: nodes.document) -> None:
    """A number and its error stay on one line."""
    for text in list(doctree.findall(nodes.Text)):
        joined = text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
        if joined != text:
            text.parent.replace(text, nodes.Text(joined))


def copy_results(app: Sphinx, exception: Exception | None) -> None:
    """Reports link to the pictures beside them, so they are copied as they lie."""
    if exception is None and app.builder.format == "html":
        ignore = shutil.ignore_patterns("*.md", "*.npz")
        copied = app.outdir / "results"
        shutil.copytree(DOCS / "results", copied, ignore=ignore, dirs_exist_ok=True)


def mark_up(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as reStructuredText, up to their examples."""
    text, example, rest = "\n".join(lines).partition("\nExample:")
    text = CODE.sub(_mark_up, text)
    lines[:] = (text + example + rest).split("\n")


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool:
    """Fields are described by their class, under `Attributes:`."""
    return skip or type(thing).__name__ in ("_tuplegetter", "member_descriptor")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", mark_up, priority=100)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", follow_links, priority=100)
    app.connect("doctree-read", name_run, priority=100)
    app.connect("doctree-read", keep_errors)
    app.connect("build-finished", copy_results)


def _is_link(node: nodes.Node) -> bool:
    """Whether this is a local link of Markdown to something else than a source in docs/."""
    if not isinstance(node, addnodes.pending_xref | addnodes.download_reference):
        return False
    if node.get("refdomain") == "doc":
        return os.path.isabs(node["reftarget"])
    return node.get("reftype") == "myst"


def _mark_up(found: re.Match[str]) -> str:
    if found[2]:
        return "\\" + found[2]
    return f"``{found[1]}``" if found[1] else found[0]


def _to_page(link: nodes.Element, page: str, here: str) -> nodes.Element:
    options: dict[str, Any] = {"reftype": "myst", "refexplicit": True, "reftargetid": None}
    return addnodes.pending_xref(
        "", *link.children, refdomain="doc", reftarget=page, refdoc=here, **options
    )
