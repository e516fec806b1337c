"""Pictures and pages write every text as they are given it."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

from experiments.common.report import figures, pages
from experiments.common.report.tables import statistics
from experiments.gradient_flow import pictures as of_gradient_flow
from experiments.lottery_ticket import pictures as of_lottery_ticket
from experiments.sparse_momentum import pictures as of_sparse_momentum

ODD = r"a $\nothing{$ <b>&%_^\\ {x}"  # as a formula it is an error
FOUND = statistics([0.5, 0.6])
LINES = [
    {"method": ODD, "replicate": r, "epoch": e, "test_accuracy": 0.5, "density": 0.1, "churn": 0.2}
    | {"layer_density": {ODD: 0.1, "fc": 0.2}}
    for r in (0, 1)
    for e in (1.0, 2.0)
]
CURVE = np.geomspace(0.1, 5, 6).reshape(2, 3)
CELL = {"kind": "ticket", "early_stop_iteration": [3, 4]}
CELLS = {str(n): CELL | {"level": n, "weights_remaining": 0.5**n} for n in range(3)}
PICTURES = {
    "accuracy_over_time": lambda f: figures.accuracy_over_time(f, LINES, [ODD], ODD),
    "density_over_time": lambda f: figures.density_over_time(f, LINES, ODD, ODD, ODD),
    "masks": lambda f: figures.masks(f, {ODD: np.ones((4, 3), bool)}, ODD),
    "accuracy_against_sparsity": lambda f: figures.accuracy_against_sparsity(
        f, {"dense": {0.0: FOUND}, ODD: {0.9: FOUND}}, ODD, ODD
    ),
    "error_against_density": lambda f: of_sparse_momentum.error_against_density(
        f, {"dense": {0.0: FOUND}, ODD: {0.9: FOUND, 0.8: FOUND}}, ODD, ODD
    ),
    "layer_densities": lambda f: of_sparse_momentum.layer_densities(
        f,
        {f"one/density/{ODD}": CURVE, "one/density/fc1": CURVE},
        {"one": {"method": "sparse_momentum", "sparsity": 0.9}},
        *(ODD, ODD, ODD),
    ),
    "sensitivity": lambda f: of_sparse_momentum.sensitivity(
        f, {ODD: {ODD: {0.1: FOUND, 0.2: FOUND}}}, ODD, ODD
    ),
    "dots": lambda f: of_sparse_momentum.dots(f, {ODD: FOUND, "dense": FOUND}, ODD, ODD, ODD),
    "over_training": lambda f: of_lottery_ticket.over_training(
        f, ODD, {"ticket-00": CURVE, "reinit-00": CURVE}, [1.0], 5, ODD
    ),
    "against_weights": lambda f: of_lottery_ticket.against_weights(
        f, CELLS, ["ticket"], {"early_stop_iteration": ODD}, ODD, ODD
    ),
    "norms": lambda f: of_gradient_flow.norms(f, {"dense": CURVE}, np.arange(3), ODD),
    "paths": lambda f: of_gradient_flow.paths(
        f,
        {"alphas": [0, 0.5, 1], "losses": {ODD: CURVE}},
        {"points": [0, 0.5, 1], "losses": {ODD: CURVE}},
        ODD,
    ),
    "solutions": lambda f: of_gradient_flow.solutions(
        f, {"names": [f"{ODD}, start 0", f"{ODD}, end 0"], "map": [[0, 0], [1, 1]]}
    ),
    "spectra": lambda f: of_gradient_flow.spectra(
        f, {f"spectrum-{ODD}-0": {"eigenvalues": [0, 1.0], "weights": [0.5, 0.5], "step": 0}}
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_drawn_as_they_are(tmp_path, monkeypatch, name):
    drawn, close = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: (drawn.append(figure), close(figure)))
    PICTURES[name](tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    texts = drawn[0].findobj(Text)
    assert any(ODD in text.get_text() or "$" in text.get_text() for text in texts)
    for text in (text for text in texts if "nothing" in text.get_text()):
        assert not text.get_parse_math() or not is_math_text(text.get_text())


def test_powers_of_ten_stay_formulas(tmp_path, monkeypatch):
    drawn, close = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: (drawn.append(figure), close(figure)))
    PICTURES["norms"](tmp_path / "picture.png")
    labels = [tick.label1 for tick in drawn[0].axes[0].yaxis.get_major_ticks()]
    shown = [label for label in labels if label.get_text()]
    assert shown and all(label.get_parse_math() for label in shown)


def test_pages_write_texts_as_they_are(tmp_path):
    figures.save(plt.figure(figsize=(4, 2)), tmp_path / "one.png")
    odd = "<script>&\"'</script>"
    table = ([odd, odd], [[odd, odd]])
    pages.write(tmp_path, odd, [odd], {odd: table}, {"one.png": odd})
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") == 10
    assert 'alt="&lt;script&gt;&amp;&quot;' in page
