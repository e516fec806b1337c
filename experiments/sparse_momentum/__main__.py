"""Sparse networks from scratch: sparse momentum and others (Dettmers & Zettlemoyer, 2019).

    python -m experiments.sparse_momentum --preset lenet_300_100 --out OUT

Takes about four hours on 2 cores, more than half of them for DeepR: LeNet-300-100 on MNIST with the
paper's settings, 100 epochs, eight methods, six sparsities, 5 replicates each. Without arguments it
runs a small study on the digits. `--study` selects another comparison than that of the methods: one
of variants of them.

Each finished cell goes to `results.json` at once, and the report is drawn again. The same command
continues where it was stopped, even in the middle of a cell, and other methods and sparsities can
be added to the same folder.
"""

import dataclasses
import functools
from collections.abc import Sequence

from experiments.common.study import command
from experiments.common.study.lab import Site
from experiments.common.study.options import flag, option
from experiments.common.study.study import Group
from experiments.common.training.methods import METHODS
from experiments.sparse_momentum import cells, report
from experiments.sparse_momentum.settings import PRESETS, Settings, check
from experiments.sparse_momentum.variants import STUDIES, method_of

PROG = "python -m experiments.sparse_momentum"


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Compares sparse momentum with other methods, as in the paper."""

    preset: str = option(
        "digits", "what to train: the paper's settings by name", choices=tuple(PRESETS)
    )
    dataset: str | None = option(None, "a data set other than the preset's")
    study: str = option(
        "main",
        "what to compare: the methods; momentum and prune rates; the parts of sparse momentum; or, "
        "on validation data, what the sources leave open",
        choices=tuple(STUDIES),
    )
    method: str | None = option(
        None,
        "methods, or variants such as sparse_momentum+growth=random, comma-separated (default: "
        "the study's)",
        was="methods",
    )
    sparsity: str | None = option(
        None,
        "fractions of zeros, comma-separated (default: the preset's; 0.95 in studies other than "
        "main)",
        was="densities",
        meant="a sparsity is 1 - density, such as 0.95 for 0.05",
    )
    epochs: int | None = option(
        None,
        "passes over the training set (default: the preset's; 20 in studies other than main)",
    )
    steps: int | None = option(
        None, "stop after this many steps instead, at least 5 (default: train for all epochs)"
    )
    batch_size: int | None = option(None, "examples per step (default: the preset's)")
    image_size: int | None = option(
        None,
        "side in pixels to which images that stay on disk are cut; presets other than resnet_50 "
        "load their data into memory unchanged (default: the preset's)",
    )


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    command.run(Options, PROG, prepare, args)


def prepare(options: Options) -> command.Study:
    """The study that the options request."""
    settings, names = resolve(options)
    wanted = all_cells(settings, names)

    def begin(site: Site, left: Sequence[str]) -> tuple[str, list[Group]]:
        lab = cells.build(settings, site)
        found = [cell for cell in wanted if cell.name in left]
        tests = options.study != "tuning"
        return lab.source.dataset.description, cells.groups(lab, found, tests)

    what = options.preset if options.study == "main" else f"{options.preset}-{options.study}"
    identity = command.identity(options, settings, study=options.study)
    del identity["sparsities"]  # like the methods: more can be added to a folder
    return command.Study(
        f"sparse_momentum-{what}",
        identity,
        [cell.name for cell in wanted],
        functools.partial(cells.content_of, options.study != "tuning"),
        f"{settings.epochs} epochs" if settings.steps is None else f"{settings.steps:,} steps",
        begin,
        report.report,
    )


def resolve(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a study, and its methods.

    Raises:
      ValueError: a value is invalid.
    """
    settings = PRESETS[options.preset]
    names = tuple(METHODS)
    if options.study != "main":
        names = STUDIES[options.study]
        settings = dataclasses.replace(settings, sparsities=(0.95,), epochs=20)
    if options.study == "tuning":  # the study that finds them
        settings = dataclasses.replace(settings, own={})
    if options.method is not None:
        names = tuple(name for name in options.method.split(",") if name)
    for name in names:
        check(settings, name)
    if options.sparsity is not None:
        try:
            sparsities = tuple(round(float(text), 6) for text in options.sparsity.split(","))
        except ValueError:
            sparsities = ()
        if not sparsities or not all(0 <= sparsity < 1 for sparsity in sparsities):
            raise ValueError(
                f"--sparsity must be comma-separated numbers in [0, 1), got {options.sparsity!r}."
            )
        settings = dataclasses.replace(settings, sparsities=sparsities)
    if options.epochs is not None and options.steps is not None:
        raise ValueError("--epochs and --steps exclude each other; give one of them.")
    if options.image_size is not None and settings.image_size is None:
        raise ValueError(f"--image-size cannot be used with --preset {options.preset}.")
    least = {"epochs": 1, "steps": 5, "batch_size": 1, "image_size": 16}
    for name in ("dataset", *least):
        value = getattr(options, name)
        if value is None:
            continue
        if name in least and value < least[name]:
            raise ValueError(f"{flag(name)} must be at least {least[name]}, got {value}.")
        settings = dataclasses.replace(settings, **{name: value})
    return settings, names


def all_cells(settings: Settings, names: Sequence[str]) -> list[cells.Cell]:
    """Every method at every sparsity; dense once."""
    return [
        cells.Cell(name, sparsity)
        for name in names
        for sparsity in ((0.0,) if METHODS[method_of(name)].dense else settings.sparsities)
    ]


if __name__ == "__main__":
    main()
