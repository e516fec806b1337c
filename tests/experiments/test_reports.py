"""The page of a study, the looks of its methods, and what the published folders hold."""

import html.parser
import importlib
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from experiments.common import files
from experiments.common.report import looks, pages
from experiments.common.report.figures import plt, save
from experiments.common.study.content import Finished
from experiments.common.training.methods import METHODS
from experiments.gradient_flow.settings import METHODS as OF_GRADIENT_FLOW
from experiments.gradient_flow.settings import SHARED
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.lottery_ticket import pictures as of_lottery_ticket
from experiments.lottery_ticket.cells import CONTROLS
from experiments.sparse_momentum import pictures as of_sparse_momentum

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
PAGES = sorted(RESULTS.rglob("report.html"))
MEGABYTES = 15


class Page(html.parser.HTMLParser):
    """What a browser finds in a page: its elements in their order, and the text within each."""

    def __init__(self, file):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in ("img", "meta"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [(attrs, text) for name, attrs, text in self.elements if name == tag]

    def place(self, tag, text=""):
        return next(
            i for i, (name, _, own) in enumerate(self.elements) if name == tag and text in own
        )


@pytest.fixture
def page(tmp_path):
    figure, _ = plt.subplots(figsize=(4, 2))
    save(figure, tmp_path / "a b.png")
    files.write_json(tmp_path / "config.json", {"dense": "", "prune": [1, 2]})
    short = [["rigl", "97.25 ± 0.04 %"], ["set_plus", "97.25 ± 0.04 %, n = 5"]]
    prose = [["accuracy, prune", "", "33 ± 7 % earlier (+10 to +50, n = 5) than others"]]
    tables = {
        "Short": (["", "accuracy"], short),
        "Long": (["", "accuracy"], short * 10),
        pages.VERDICT: (["", "paper", "ours"], prose),
    }
    facts = ["Made by `python -m experiments.x --method a,b`: rigl."]
    pages.write(tmp_path, "Title", facts, tables, {"a b.png": "Picture", "gone.png": "Gone"})
    return Page(tmp_path / "report.html")


def test_pictures_come_first_then_the_verdict_then_tables_the_long_ones_folded(page):
    order = [page.place(*one) for one in (("img",), ("h2", pages.VERDICT), ("h2", "Short"))]
    order += [page.place("summary", "Long"), page.place("h2", "How"), page.place("summary", "Sett")]
    assert order == sorted(order)
    assert len(page.all("details")) == 2 and not any("open" in a for a, _ in page.all("details"))
    ((image, _),) = page.all("img")
    assert image["src"] == "a%20b.png" and image["alt"] == "Picture"
    assert int(image["width"]) == 600 and int(image["height"]) == 300


def test_numbers_stay_whole_and_commands_are_code(page):
    space = "\N{NO-BREAK SPACE}"
    texts = [text for tag in ("td", "th", "p") for _, text in page.all(tag)]
    assert not any(re.search(r"\d ±|± \d|\d %|n = ", text) for text in texts)
    assert f"97.25{space}±{space}0.04{space}%" in texts
    assert [text for _, text in page.all("code")] == ["python -m experiments.x --method a,b"]
    assert not any("`" in text for _, _, text in page.elements)
    prose = [attrs.get("class") for attrs, text in page.all("td") if "earlier" in text]
    assert prose == ["long"]


def test_methods_have_their_readable_names_and_colours(page):
    rows = [i for i, (_, attrs, _) in enumerate(page.elements) if attrs.get("scope") == "row"]
    found = {page.elements[i][2]: page.elements[i + 1][1].get("style") for i in rows}
    for text, method in {
        "RigL": "rigl",
        "SET, sparse initialization": "sparse_evolution",
        "accuracy, gradual pruning": "gradual",
    }.items():
        assert found.pop(text) == f"--own:{looks.look(method).colour}"
    assert found == {"dense": None, "prune": None}, "settings are no methods"


def test_every_method_has_a_look():
    names = {*METHODS, *OF_GRADIENT_FLOW, *SHARED, *CONTROLS, "ticket"}
    assert names <= set(looks.LOOKS)
    of_table = [looks.look(name).colour for name in METHODS]
    assert len(set(of_table)) == len(of_table), "one colour each"
    labels = {}
    for name, (label, colour, _) in looks.LOOKS.items():
        assert labels.setdefault(label, colour) == colour, name


def test_variants_share_the_colour_and_differ_in_their_line():
    drawn = looks.lines(["rigl", "rigl+period=1", "rigl+period=2", "dense", "unheard_of"])
    assert len({one["color"] for one in list(drawn.values())[:3]}) == 1
    seen = {(one["color"], one["linestyle"]) for one in drawn.values()}
    assert len(seen) == len(drawn) and drawn["unheard_of"]["label"] == "unheard_of"


@pytest.fixture
def drawn(monkeypatch):
    figures, close = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: (figures.append(figure), close(figure)))
    return figures


def colours(axes):
    return {line.get_label().split(",")[0]: line.get_color() for line in axes.lines}


def test_a_level_has_one_colour_in_both_panels(tmp_path, drawn):
    """Also where only some levels were trained anew: 51% has another place on the right."""
    curve = np.geomspace(0.1, 0.9, 6).reshape(2, 3)
    names = ["ticket-00", "ticket-01", "ticket-02", "reinit-02"]
    densities = [1.0, 0.8, 0.51]
    of_lottery_ticket.over_training(
        tmp_path / "training.png", "accuracy", dict.fromkeys(names, curve), densities, 5, ""
    )
    left, right = (colours(axes) for axes in drawn[0].axes)
    assert left["51%"] == right["51%"] and len(set(left.values())) == 3


def test_a_method_has_one_colour_in_both_panels(tmp_path, drawn):
    found = {0.1: {"mean": 0.9, "standard_error": 0.01}}
    panels = {"momentum": {"dense": found, "rigl": found}, "rate": {"rigl+schedule=linear": found}}
    of_sparse_momentum.sensitivity(tmp_path / "sensitivity.png", panels, "title", "note")
    left, right = (colours(axes) for axes in drawn[0].axes)
    assert left["RigL"] == right["RigL + schedule=linear"] == looks.look("rigl").colour
    assert left["dense"] == looks.DENSE


def finished(results, wanted, command="later"):
    return Finished(pathlib.Path(), {}, results, wanted, "", command)


def test_a_page_names_the_command_of_every_cell():
    first, second = {"command": "x --method a,b"}, {"command": "x --method c"}
    one = finished({"a": first, "b": first}, ["a"])
    assert one.made_by == "Made by `x --method a,b`."
    both = finished({"a": first, "c": second, "b": first}, ["c"])
    assert both.made_by == "Made by `x --method a,b`: a, b; `x --method c`: c."
    old = finished({"a": {}, "b": {}}, ["b"])
    assert old.made_by == "Made by a command that was not kept: a; `later`: b."


def test_the_published_results_are_small():
    size = sum(file.stat().st_size for file in RESULTS.rglob("*") if file.is_file())
    assert size <= MEGABYTES * 1e6, (
        f"docs/results holds {size / 1e6:.1f} MB of at most {MEGABYTES}: keep tables, results, "
        "pictures and curves, and leave out what a command makes again (masks.npz, solutions.npz)"
    )


@pytest.mark.parametrize("folder", ["lottery_ticket/one_shot", "sparse_momentum/tuning"])
def test_a_published_folder_is_drawn_anew_from_what_it_keeps(folder, tmp_path, call, monkeypatch):
    copy = shutil.copytree(RESULTS / folder, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for path in copy.glob("*.png"):
        path.unlink()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    _, name, *args = shlex.split(re.search("`python (.*?)`", before["table.md"].decode())[1])
    main = importlib.import_module(f"{name}.__main__").main
    code, out, err = call(main, *args, "--out", str(copy))
    assert code == 0, err
    assert {path.name for path in copy.iterdir()} == set(before)
    for file in ("table.md", "report.html", "results.json", "summary.json"):
        assert (copy / file).read_bytes() == before[file], file
    gone = [line for line in out.splitlines() if line.startswith("Not kept")]
    assert len(gone) == ("lottery" in folder)


def test_tickets_without_places_say_what_measures_them(tmp_path, call):
    """A folder from before they were kept with the results."""
    copy = shutil.copytree(RESULTS / "lottery_ticket" / "one_shot", tmp_path / "copy")
    results = files.read_json(copy / "results.json")
    for cell in results.values():
        cell.pop("layers", None)
    files.write_json(copy / "results.json", results)
    args = ["--preset", "lenet_one_shot", "--method", ""]
    code, out, _ = call(lottery_ticket.main, *args, "--out", str(copy))
    assert code == 0 and "Where the weights of the tickets are" not in out
    told = (
        f"`python -m experiments.lottery_ticket {shlex.join(args)} --out FOLDER` measures it again"
    )
    assert told in out


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.parent.relative_to(RESULTS)))
def test_a_published_page_links_to_the_pictures_beside_it(file):
    text = file.read_text()
    assert "data:image" not in text and "`" not in text
    pictures = [attrs["src"] for attrs, _ in Page(file).all("img")]
    assert sorted(pictures) == sorted(path.name for path in file.parent.glob("*.png"))
