"""Gradient flow in sparse networks, and how tickets win (Evci et al., 2020).

    python -m experiments.gradient_flow --preset lenet_5 --out docs/results/gradient_flow/lenet_5

LeNet-5 on MNIST at 95% sparsity, as in the paper: fourteen ways to train a sparse network, 5
replicates each; 5 orders of the examples from one pruned mask; then interpolation, Bezier paths,
distances, ensembles, output deviation against sparsity and Hessian spectra. Without arguments it
runs a small study on the digits.

Each finished cell goes to `results.json` at once, and the report is drawn again. The same command
continues where it was stopped, even in the middle of a cell.
"""

import dataclasses
from collections.abc import Sequence

from experiments.common.study import command
from experiments.common.study.lab import Site
from experiments.common.study.options import option
from experiments.common.study.study import Group
from experiments.gradient_flow import analyses, cells, lab, report
from experiments.gradient_flow.settings import BY_NAME, METHODS, PRESETS, SHARED, scaled

PROG = "python -m experiments.gradient_flow"


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Measures gradient flow, curvature and landscape of sparse networks, as in the paper."""

    preset: str = option(
        "digits", "what to train: the paper's settings by name", choices=tuple(PRESETS)
    )
    method: str = option(
        ",".join(name for name in (*METHODS, *SHARED) if name not in BY_NAME),
        "methods, comma-separated; most need prune",
        was="methods",
    )
    dataset: str | None = option(None, "a data set other than the preset's")
    scale: float = option(1.0, "shortens (or lengthens) every training in proportion")
    weight_decay: float | None = option(
        None, "a penalty other than the preset's: this times the sum of squares of the kernels"
    )
    analyses: str = option(
        ",".join(analyses.NEEDS), "what to measure of the trained networks, comma-separated"
    )


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
    settings = PRESETS[options.preset]
    if options.dataset is not None:
        settings = dataclasses.replace(settings, dataset=options.dataset)
    if options.weight_decay is not None:
        decay = options.weight_decay
        if not decay >= 0:
            raise ValueError(f"--weight-decay must be at least 0, got {decay}.")
        settings = dataclasses.replace(settings, weight_decay=decay, scored_weight_decay=decay)
    settings = scaled(settings, options.scale)
    if options.seeds < 2:
        raise ValueError("--seeds must be at least 2: the study compares trained networks.")
    names = _several("method", options.method, (*METHODS, *SHARED))
    kinds = _several("analyses", options.analyses, tuple(analyses.NEEDS))
    needs = {f"--analyses {kind}": analyses.NEEDS[kind] for kind in kinds}
    needs |= {f"--method {name}": cells.needs(name) for name in names}
    for what, others in needs.items():
        missing = [name for name in others if name not in names]
        if missing:
            raise ValueError(f"{what} needs --method {','.join(missing)} too.")
    wanted = [*names, *analyses.names(settings, kinds)]

    def begin(site: Site, left: Sequence[str]) -> tuple[str, list[Group]]:
        flow = lab.build(settings, site)
        groups = [*cells.groups(flow, left), *analyses.groups(flow, left)]
        return flow.lab.source.dataset.description, groups

    return command.Study(
        f"gradient_flow-{options.preset}",
        command.identity(options, settings, methods=names, analyses=kinds),
        wanted,
        analyses.content_of,
        f"{settings.iterations:,} iterations",
        begin,
        report.report,
    )


def _several(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    found = tuple(name for name in text.split(",") if name)
    for name in found:
        if name not in known:
            raise ValueError(f"--{option} must be among {', '.join(known)}, got {name!r}.")
    return found


if __name__ == "__main__":
    main()
