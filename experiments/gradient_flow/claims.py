"""What the paper says about LeNet-5 at 95%, next to what a study has found."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.common.report.pages import Table
from experiments.common.report.tables import percent, statistics
from experiments.gradient_flow.cells import learned

PUBLISHED = {
    "prune": "98.53 %, five of them 98.30 ± 0.23 %",
    "shared_ticket": "98.52 ± 0.02 %",
    "shared_scratch": "97.04 ± 0.15 %",
    "shared_scratch_new": "97.19 ± 0.33 %",
    "shared_restart": "98.60 ± 0.01 %",
}
"""Test accuracies of LeNet-5 on MNIST at 95%: of one pruning, and of what is trained around it."""
AGREED = {
    "shared_ticket": ("98.58 %", "0.0043 ± 0.0006", "0.0089 ± 0.0002"),
    "shared_scratch": ("98.00 %", "0.0316 ± 0.0023", "0.0278 ± 0.0020"),
    "shared_scratch_new": ("98.43 %", "0.0352 ± 0.0037", "0.0278 ± 0.0032"),
    "shared_restart": ("98.63 %", "0.0027 ± 0.0003", "0.0077 ± 0.0003"),
    "prune": ("99.07 %", "0.0214 ± 0.0023", "0.0197 ± 0.0019"),
}
"""Ensemble, disagreement, disagreement with the pruning solution."""


def claims(results: Mapping[str, Any], config: Mapping[str, Any]) -> Table:
    """The paper's numbers next to those found; the paper's column is empty for other networks."""
    papers = config["model"] == "lenet_5" and config["dataset"] == "mnist"
    rows: list[tuple[str, str, str]] = []

    def add(claim: str, paper: str, ours: str) -> None:
        rows.append((claim, paper if papers else "", ours))

    for name, published in PUBLISHED.items():
        if name in results:
            found = statistics(results[name]["test_accuracy"])
            add(f"accuracy, {name}", published, f"{percent(found)}, n = {found['n']}")
    if {"scratch", "scratch_plus", "prune"} <= set(results):
        plus, scratch = (
            np.array(results[name]["test_accuracy"]) for name in ("scratch_plus", "scratch")
        )
        add("scratch with the sparse initialization", "above scratch", _points(plus, scratch))
        for name, found in (("scratch", scratch), ("scratch_plus", plus)):
            learn = found[learned(results, name)]
            mean = f", {percent(statistics(learn.tolist()))}" if len(learn) else ""
            add(f"replicates that learn, {name}", "", f"{len(learn)} of {len(found)}{mean}")
    if {"dense", "scratch", "scratch_plus"} <= set(results):
        dense, plain, plus = (
            np.mean(results[name]["initial_gradient_norm"])
            for name in ("dense", "scratch", "scratch_plus")
        )
        add(
            "gradient norm before training, as a fraction of dense",
            "scratch far below, with the sparse initialization about 1",
            f"scratch {plain / dense:.2f}, with the sparse initialization {plus / dense:.2f}",
        )
    for name in ("rigl", "set"):
        if name in results:
            before, after = (
                np.array(results[name][f"norm_{when}_update"]) for when in ("before", "after")
            )
            raised = 100 * (after / before - 1)
            add(
                f"{name}: a mask update raises the gradient norm",
                "yes" if name == "rigl" else "",
                f"{raised.mean():+.0f}% on average, in {(raised > 0).sum()} of {raised.size}",
            )
    for name, (ensemble, pairs, pruned) in AGREED.items():
        row = results.get("agreement", {}).get(name)
        if row is None:
            continue
        add(f"ensemble, {name}", ensemble, f"{100 * row['ensemble']:.2f} %")
        for label, paper, key in (
            ("disagreement", pairs, "disagreement"),
            ("disagreement with the pruning solution", pruned, "disagreement_with_pruned"),
        ):
            found = statistics(row[key])
            add(f"{label}, {name}", paper, f"{found['mean']:.4f} ± {found['std']:.4f}")
    return ["", "paper", "ours"], [*map(list, rows), *_barriers(results, papers)]


def _points(better: np.ndarray, worse: np.ndarray) -> str:
    gap = 100 * (better.mean() - worse.mean())
    error = 100 * np.hypot(*(x.std(ddof=1) / np.sqrt(len(x)) for x in (better, worse)))
    return f"{gap:+.2f} ± {error:.2f} points, n = {len(better)}"


def _barriers(results: Mapping[str, Any], papers: bool) -> list[list[str]]:
    rows, expected = [], {"ticket": "none", "scratch": "yes"}
    if "lines" not in results:
        return rows
    whole = np.mean(results["lines"]["dense_initial_loss"])
    at = np.array(results["lines"]["alphas"])
    inside = (at >= 0) & (at <= 1)
    for name, losses in results["lines"]["losses"].items():
        shown = expected.get(name, "") if papers else ""
        ours = _barrier(np.array(losses)[:, inside], whole)
        rows.append([f"barrier on the line from {name} to prune", shown, ours])
    for name, losses in results.get("beziers", {}).get("losses", {}).items():
        ours = _barrier(np.array(losses), whole)
        rows.append([f"barrier on a Bezier path from {name} subspace", "", ours])
    return rows


def _barrier(losses: np.ndarray, whole: float) -> str:
    heights = losses.max(1) - np.maximum(losses[:, 0], losses[:, -1])
    found, share = statistics(heights), 100 * heights.mean() / whole
    return (
        f"{found['mean']:.3f} ± {found['standard_error']:.3f}, {share:.1f}% of the dense initial "
        "loss"
    )
