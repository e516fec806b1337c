"""What accuracy costs: every method compared by wall-clock time and by FLOPs.

    python -m experiments.cost --preset mnist --out docs/results/cost/mnist

Takes about ten minutes on 2 idle cores: LeNet-300-100 on MNIST at 95% sparsity, 20 epochs, dense
training and seven methods, 3 replicates each. Without arguments it runs a small study on the
digits. Expect masked training to cost as much time as dense training or more, whatever its FLOPs.
"""

import dataclasses
from collections.abc import Sequence

from experiments.common.study import command
from experiments.common.study.lab import Site
from experiments.common.study.options import option
from experiments.common.study.study import Group
from experiments.common.training.methods import METHODS
from experiments.cost import cells, report
from experiments.cost.settings import BLOCKS, COMPRESSED, NAMES, PRESETS

PROG = "python -m experiments.cost"


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Plots the accuracy of every method against the time and the FLOPs that it takes."""

    seeds: int = option(3, "runs of every cell, each with its own weights and batches")
    preset: str = option("digits", "what to train", choices=tuple(PRESETS))
    method: str | None = option(
        None,
        f"methods, comma-separated; {COMPRESSED} or {BLOCKS} after a name stores it as its living "
        "values, or as living blocks (default: the preset's)",
    )
    sparsity: float = option(0.95, "fraction of zeros, in [0, 1)")
    epochs: int | None = option(None, "passes over the training set (default: the preset's)")
    dataset: str | None = option(None, "the data set (default: the preset's)")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    command.run(Options, PROG, prepare, args)


def prepare(options: Options) -> command.Study:
    """The study that the options request.

    Raises:
      ValueError: a value is invalid.
    """
    settings = dataclasses.replace(PRESETS[options.preset], sparsity=options.sparsity)
    given = {"epochs": options.epochs, "dataset": options.dataset}
    given = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings, **given)
    names = [*NAMES.get(options.preset, METHODS)]
    if options.method is not None:
        names = [name for name in options.method.split(",") if name]
    settings.check(names)

    def begin(site: Site, left: Sequence[str]) -> tuple[str, list[Group]]:
        lab = cells.build(settings, site)
        return lab.source.dataset.description, [cells.group(lab, name) for name in left]

    return command.Study(
        f"cost-{options.preset}",
        command.identity(options, settings),
        names,
        cells.content_of,
        f"{settings.epochs} epochs",
        begin,
        report.report,
    )


if __name__ == "__main__":
    main()
