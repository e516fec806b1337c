"""What the paper claims about its tickets, next to what a study has found."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.common.report.pages import Table
from experiments.common.report.tables import percent, statistics

Results = Mapping[str, Mapping[str, Any]]


def claims(results: Results, from_the_paper: bool) -> Table:
    """The paper's claims next to what was found; the paper's column is empty for other networks."""
    rows = []
    for claim, paper, find in _CLAIMS:
        found = find(results)
        if found is not None:
            rows.append([claim, paper if from_the_paper else "", found])
    return ["claim", "paper", "ours (mean ± standard error, range, n)"], rows


def _faster(results: Results) -> str | None:
    dense, ticket = results.get("ticket-00"), _near(results, "ticket", 0.211)
    if dense is None or ticket is None:
        return None
    name = "early_stop_iteration"
    gain = 1 - np.array(ticket[name]) / np.mean(dense[name])
    text = f"{percent(statistics(gain), 0)} earlier ({_range(gain, 0)})"
    return f"{text}; {np.mean(ticket[name]):,.0f} against {np.mean(dense[name]):,.0f} iterations"


def _best(results: Results, name: str) -> str | None:
    gains = _gains(results, "ticket", name)
    if not gains:
        return None
    share, gain = max(gains.items(), key=lambda item: item[1].mean())
    return f"{_points(gain)} at {100 * share:.3g}%"


def _down_to(results: Results, kind: str) -> str | None:
    gains = _gains(results, kind, "early_stop_accuracy")
    reached = None
    for share in sorted(gains, reverse=True):
        if gains[share].mean() < -0.0005:
            break
        reached = share
    if not gains:
        return None
    if reached is None:
        return "at no level"
    below = min((s for s in gains if s < reached), key=lambda s: -s, default=None)
    text = f"down to {100 * reached:.3g}%: {_points(gains[reached])}"
    return text if below is None else f"{text}; at {100 * below:.3g}%: {_points(gains[below])}"


def _reinit(results: Results) -> str | None:
    ticket, reinit = _near(results, "ticket", 0.211), _near(results, "reinit", 0.211)
    if ticket is None or reinit is None or ticket["level"] != reinit["level"]:
        return None
    name = "early_stop_accuracy"
    behind = np.array(ticket[name]) - np.array(reinit[name])
    iterations = [np.mean(cell["early_stop_iteration"]) for cell in (reinit, ticket)]
    text = f"{_points(behind)} behind the ticket at {share_of(ticket)}"
    return f"{text}, {iterations[0] / iterations[1]:.2f} times as many iterations"


def _reinit_dense(results: Results) -> str | None:
    gains = _gains(results, "reinit", "early_stop_accuracy")
    below = [share for share in gains if gains[share].mean() < -0.0005]
    if not gains:
        return None
    if not below:
        return "at no level"
    return f"from {100 * max(below):.3g}% on: {_points(gains[max(below)])} against dense"


def _iterative_wins(results: Results) -> str | None:
    found = []
    for cell in sorted(results.values(), key=lambda cell: -cell["level"]):
        ticket = results.get(f"ticket-{cell['level']:02d}")
        if cell["kind"] == "one_shot" and ticket is not None:
            name = "early_stop_accuracy"
            lead = np.array(ticket[name]) - np.array(cell[name])
            found.append(f"{_points(lead)} at {share_of(cell)}")
    return "; ".join(found[:3]) or None


def _learned(results: Results) -> str | None:
    name = "final_train_accuracy"
    found = [
        cell
        for cell in results.values()
        if cell["kind"] == "ticket" and np.mean(cell[name]) > 0.995
    ]
    if not found:
        return "above 99.5% at no level"
    return f"above 99.5% down to {100 * min(cell['weights_remaining'] for cell in found):.3g}%"


_CLAIMS: tuple[tuple[str, str, Callable[[Results], str | None]], ...] = (
    ("the ticket at 21% learns faster than dense", "38% earlier", _faster),
    (
        "best ticket over dense at the early stop",
        "+0.3 points or more at 13.5%",
        lambda results: _best(results, "early_stop_accuracy"),
    ),
    (
        "tickets no worse than dense (mean no worse than -0.05 points)",
        "down to 3.6%",
        lambda results: _down_to(results, "ticket"),
    ),
    ("reinitialized at 21%", "about 0.5 points behind, 2.51 times as long", _reinit),
    ("reinitialized falls behind dense", "from 21% on", _reinit_dense),
    (
        "one-shot no worse than dense",
        "more accurate from 95% down to 5.2%",
        lambda results: _down_to(results, "one_shot"),
    ),
    ("iterative over one-shot", "wins at small sizes", _iterative_wins),
    (
        "best ticket over dense at the end",
        "up to +0.35 points",
        lambda results: _best(results, "final_accuracy"),
    ),
    ("training accuracy at the end", "about 100% down to 2%", _learned),
)


def _gains(results: Results, kind: str, name: str) -> dict[float, np.ndarray]:
    # Differences from dense of the same replicate, by weights remaining.
    if "ticket-00" not in results:
        return {}
    dense = np.array(results["ticket-00"][name])
    return {
        cell["weights_remaining"]: np.array(cell[name]) - dense
        for cell in results.values()
        if cell["kind"] == kind and cell["level"] > 0
    }


def _near(results: Results, kind: str, share: float) -> Mapping[str, Any] | None:
    # The level of the paper's number, if the study has one close to it.
    cells = [cell for cell in results.values() if cell["kind"] == kind]
    cell = min(cells, key=lambda cell: abs(cell["weights_remaining"] - share), default=None)
    close = cell is not None and 0.9 < cell["weights_remaining"] / share < 1.1
    return cell if close else None


def _points(values: np.ndarray) -> str:
    found = statistics(100 * values)
    spread = f" ± {found['standard_error']:.2f}" if found["n"] > 1 else ""
    return f"{found['mean']:+.2f}{spread} points ({_range(values, 2)})"


def _range(values: np.ndarray, digits: int) -> str:
    low, high = 100 * min(values), 100 * max(values)
    return f"{low:+.{digits}f} to {high:+.{digits}f}, n = {len(values)}"


def share_of(cell: Mapping[str, Any]) -> str:
    """The weights remaining, in percent."""
    return f"{100 * cell['weights_remaining']:.1f}%"
