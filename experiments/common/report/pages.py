"""The report of a study: as Markdown, and as an HTML page next to its pictures.

The page shows pictures first, then the verdict against the paper, then the other tables, the long
ones folded, and finally how everything was made.
"""

import html
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from experiments.common import files
from experiments.common.report import looks
from experiments.common.report.tables import markdown

Table = tuple[list[str], list[list[str]]]
"""A header, and rows of as many cells."""

VERDICT = "Against the paper"
"""The title of the table right below the pictures."""
_LONG_TABLE = 12  # rows; a longer one is folded
_LONG_TEXT = 28  # characters; a column with longer text is prose, and may break between numbers
_STYLE = Path(__file__).with_name("report.css")
_TOGETHER = re.compile(r"(?<=\d) (?=[±%])|(?<=±) (?=\d)|(?<=n) (?==)|(?<==) (?=\d)")


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
      facts: sentences above the tables, one paragraph each; commands are in backticks.
      tables: by title; those without rows are left out.
      pictures: titles by file name; missing files are left out.

    Returns:
      The Markdown.
    """
    tables = {name: table for name, table in tables.items() if table[1]}
    text = [f"# {title}", *facts]
    for name, table in tables.items():
        text += [f"## {name}", markdown(*table)]
    text = "\n\n".join(text) + "\n"
    settings = files.read_json(path / "config.json") or {}
    rows = [[name, str(value)] for name, value in settings.items()]
    shown = {file: name for file, name in pictures.items() if (path / file).exists()}
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [_picture(path / file, name) for file, name in shown.items()]
    body += [_verdict(*tables[name]) for name in tables if name == VERDICT]
    body += [_table(name, *table) for name, table in tables.items() if name != VERDICT]
    body += ["<h2>How it was made</h2>", *(_paragraph(fact) for fact in facts)]
    body += [_folded("Settings", _grid(["setting", "value"], rows, _plain), len(rows))]
    files.write_text(
        path / "report.html",
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE.read_text()}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n",
    )
    files.write_text(path / "table.md", text)
    return text


def _picture(file: Path, title: str) -> str:
    with open(file, "rb") as opened:
        width, height = struct.unpack(">16x2I", opened.read(24))  # their place in every PNG file
    name, title = quote(file.name), html.escape(title)
    size = f'width="{width}" height="{height}" style="--pixels:{width}"'
    shown = f'<a href="{name}"><img alt="{title}" src="{name}" {size}></a>'
    return f"<figure><div>{shown}</div><figcaption>{title}</figcaption></figure>"


def _paragraph(fact: str) -> str:
    parts = fact.split("`")
    text = (_code(part) if i % 2 else _kept(part) for i, part in enumerate(parts))
    return f"<p>{''.join(text)}</p>"


def _code(command: str) -> str:
    """A command that breaks between its words, not at the hyphens of its options."""
    words = (f"<span>{html.escape(word)}</span>" for word in command.split(" "))
    return f"<code>{' '.join(words)}</code>"


def _verdict(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{VERDICT}</h2>{_grid(header, rows)}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if len(rows) > _LONG_TABLE:
        return _folded(title, _grid(header, rows), len(rows))
    return f"<h2>{html.escape(title)}</h2>{_grid(header, rows)}"


def _folded(title: str, content: str, rows: int) -> str:
    name = f"{html.escape(title)} <span>{rows} rows</span>"
    return f"<details><summary>{name}</summary>{content}</details>"


def _grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    first: Callable[[str], str] | None = None,
) -> str:
    """A table in a box of its own, which scrolls if it is wider than the page."""
    long = [any(len(row[i]) > _LONG_TEXT for row in rows) for i in range(1, len(header))]
    kinds = ["", *(" class=long" if one else "" for one in long)]
    names = "".join(
        f'<th scope="col"{kind}>{_kept(name)}</th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    start = _method if first is None else first
    lines = "\n".join(f"<tr>{start(row[0])}{_cells(row[1:], kinds[1:])}</tr>" for row in rows)
    table = f"<table><thead><tr>{names}</tr></thead>\n<tbody>\n{lines}\n</tbody></table>"
    return f'<div class="box" tabindex="0">{table}</div>'


def _plain(text: str) -> str:
    return f'<th scope="row">{_kept(text)}</th>'


def _method(text: str) -> str:
    colour = looks.colour_of(text)
    swatch = f'<span class="swatch" style="--own:{colour}"></span>' if colour else ""
    return f'<th scope="row">{swatch}{_kept(looks.readable(text))}</th>'


def _cells(texts: Sequence[str], kinds: Sequence[str]) -> str:
    pairs = zip(texts, kinds, strict=True)
    return "".join(f"<td{kind}>{_kept(text)}</td>" for text, kind in pairs)


def _kept(text: str) -> str:
    """A text whose numbers stay together with their ± and units."""
    return _TOGETHER.sub("\N{NO-BREAK SPACE}", html.escape(text))
