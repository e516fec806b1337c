"""The report of a study on one page: facts, tables, pictures, settings; as Markdown and as HTML."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.common import files
from experiments.common.report.tables import markdown

Table = tuple[list[str], list[list[str]]]
"""A header, and rows of as many cells."""

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .6rem;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%}"
)


def write(
    path: Path,
    title: str,
    facts: Sequence[str],
    tables: Mapping[str, Table],
    pictures: Mapping[str, str],
) -> str:
    """Writes `table.md` and `report.html` into the folder of a study.

    Args:
      path: the folder; its `config.json` gives the settings.
      title: of the page.
      facts: sentences above the tables, a paragraph each.
      tables: by title; those without rows are left out.
      pictures: titles by file name; files that are not there are left out.

    Returns:
      The Markdown.
    """
    tables = {name: table for name, table in tables.items() if table[1]}
    text = [f"# {title}", *facts]
    for name, table in tables.items():
        text += [f"## {name}", markdown(*table)]
    text = "\n\n".join(text) + "\n"
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f"<p>{html.escape(fact)}</p>" for fact in facts]
    body += [_table(name, table) for name, table in tables.items()]
    body += [_picture(path / file, name) for file, name in pictures.items()]
    settings = files.read_json(path / "config.json") or {}
    rows = [[name, str(value)] for name, value in settings.items()]
    body.append(_table("Settings", (["setting", "value"], rows)))
    files.write_text(
        path / "report.html",
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n",
    )
    files.write_text(path / "table.md", text)
    return text


def _picture(file: Path, title: str) -> str:
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    title = html.escape(title)
    return f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">'


def _table(title: str, table: Table) -> str:
    header, rows = table
    lines = ["".join(f"<th>{html.escape(text)}</th>" for text in header)]
    lines += ["".join(f"<td>{html.escape(text)}</td>" for text in row) for row in rows]
    text = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h2>{html.escape(title)}</h2><table>{text}</table>"
