"""The report of a study of costs, made from its files alone."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.report import looks, pages
from experiments.common.report.figures import PERCENT, log_ticks, note_above, plain, save
from experiments.common.report.tables import number, percent, statistics
from experiments.common.study.content import Finished, read_arrays


def report(finished: Finished) -> str:
    """Writes the whole report; see `command.Study`."""
    config, results = finished.config, finished.results
    what = f"{config['model']} on {config['dataset']}, {100 * config['sparsity']:g}% sparse"
    found = {
        name: {key: statistics(cell[key]) for key in ("test_accuracy", "time", "flops")}
        for name, cell in results.items()
    }
    finished.summarize(seconds=finished.seconds, methods=found)
    _draw(finished, what)
    rows = [
        [name, percent(s["test_accuracy"]), number(s["time"]), f"{s['flops']['mean']:.3f}"]
        for name, s in found.items()
    ]
    facts = [
        f"{finished.replicates}: mean and standard error. Time: seconds of steps, mask updates "
        "among them, over those of dense training, in turns on one machine. FLOPs: of the whole "
        "training over those of dense training, living weights only, which arrays with masks do "
        f"not save. Data: {finished.description}. {finished.made_by}"
    ]
    tables = {"Accuracy and cost": (["", "test accuracy", "time / dense", "FLOPs / dense"], rows)}
    shown = {"cost.png": "Accuracy against time and against FLOPs"}
    return pages.write(finished.path, f"What accuracy costs: {what}", facts, tables, shown)


def _draw(finished: Finished, what: str) -> None:
    curves = read_arrays(finished.path / "curves.npz")
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 4.4), sharey=True, layout="constrained"
    )
    late = []
    drawn = looks.lines(finished.results)
    for name, cell in finished.results.items():
        accuracy = curves[f"{name}/validation_accuracy"].mean(0)
        points = np.arange(1, len(accuracy) + 1) / len(accuracy)
        style = drawn[name] | {"ms": 3, "lw": 1.3}
        left.plot(points * np.mean(cell["time"]), accuracy, **style)
        right.plot(curves[f"{name}/flops"].mean(0), accuracy, **style)
        late += accuracy[len(accuracy) // 4 :].tolist()
    left.set_ylim(max(0.0, min(late) - 0.01), min(1.0, max(late) + 0.005))
    left.set_ylabel("validation accuracy")
    left.yaxis.set_major_formatter(PERCENT)
    left.set_xlabel("wall-clock time, dense training = 1 (log scale)")
    right.set_xlabel("FLOPs of living weights, dense training = 1 (log scale)")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False
    )
    for axes in (left, right):
        axes.set_xscale("log")
        log_ticks(axes.xaxis, "{x:g}")
        plain(axes)
    note_above(left, f"What accuracy costs: {what}", f"mean of {finished.replicates}")
    save(figure, finished.path / "cost.png")
