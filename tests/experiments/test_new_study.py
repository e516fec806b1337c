"""What a new study must provide, on the smallest one: settings, cells and a report."""

import dataclasses
import functools
import json

import optax

import jaxsparse
from experiments.common.report import pages
from experiments.common.report.tables import percent, statistics
from experiments.common.study import command
from experiments.common.study.content import Content, measured, read_arrays
from experiments.common.study.lab import Lab, make_lab
from experiments.common.study.options import option
from experiments.common.study.study import Group
from experiments.common.training import sources
from experiments.common.training.tracking import track


@dataclasses.dataclass(frozen=True)
class Settings:
    model: str = "mlp_8_8"
    dataset: str = "digits"
    batch_size: int = 24
    iterations: int = 40
    every: int = 20
    sparsity: float = 0.5


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Compares methods, as small as can be."""

    names: str = option("fixed,rigl", "methods, comma-separated")


def prepare(options):
    settings, names = Settings(), options.names.split(",")

    def begin(site, left):
        source = sources.load(settings.dataset, batch_size=24, validation=0.1, **site.data)
        lab = make_lab(settings, site, source, ("validation", "test"))
        return source.dataset.description, [group(lab, name) for name in left]

    identity = command.identity(options, settings)
    return command.Study("small", identity, names, content_of, "40 steps", begin, report)


def group(lab: Lab, name):
    steps = lab.settings.iterations, lab.settings.every
    return Group([name], functools.partial(finish, lab, name), lambda: start(lab, name), *steps)


def start(lab, name):
    settings, make = lab.settings, getattr(jaxsparse, name)
    trainer = lab.trainer(
        lambda key: make(optax.sgd(0.1), settings.sparsity, key=key),
        track=track(lab.network.apply, settings.every, settings.iterations, lab.sets),
    )
    return trainer, trainer.init(lab.site.keys)


def finish(lab, name, state):
    numbers = {"test_accuracy": lab.accuracy(state.params, "test")}
    return {name: measured(name, lab.mine(0), numbers, state.tracked.curves, method=name)}


def content_of(name):
    numbers = {"method": str, "test_accuracy": [float], "seconds": float}
    return Content(numbers, {"curves.npz": f"{name}/"})


def report(finished):
    found = {name: statistics(cell["test_accuracy"]) for name, cell in finished.results.items()}
    finished.summarize(seconds=finished.seconds, methods=found)
    rows = [[name, percent(accuracy)] for name, accuracy in found.items()]
    tables = {"Methods": (["", "test accuracy"], rows)}
    facts = [f"{finished.replicates}. Data: {finished.description}. By `{finished.command}`."]
    return pages.write(finished.path, "The smallest study", facts, tables, {})


def test_the_smallest_study_trains_and_takes_more_cells(tmp_path, call):
    def main(args):
        command.run(Options, "python -m small", prepare, [*args, "--out", str(tmp_path)])

    code, out, _ = call(main, "--names", "fixed")
    assert code == 0 and "1 of 1 cells, 5 replicates each, 40 steps" in out
    code, out, _ = call(main)
    assert code == 0 and "1 of 2 cells" in out and "| rigl |" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["missing_cells"] == 0 and set(summary["methods"]) == {"fixed", "rigl"}
    assert read_arrays(tmp_path / "curves.npz")["rigl/validation_loss"].shape == (5, 2)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        *("config.json", "curves.npz", "results.json", "report.html", "summary.json", "table.md")
    }
    code, out, _ = call(main)
    assert code == 0 and "0 of 2 cells" in out
