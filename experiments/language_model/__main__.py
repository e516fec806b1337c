"""Pretrains a language model sparsely, by every method, and densely for comparison.

    python -m experiments.language_model                    # to try it out; a minute
    python -m experiments.language_model --preset 1m --seeds 3 --out docs/results/language_model/1m
    python -m experiments.language_model --preset 1b --mesh data:8 --plan

Needs Grain and tiny_shakespeare in $TFDS_DATA_DIR, or any file: `--text PATH`. Every run is a cell,
written when it is finished. The same command continues where it was stopped, and with more seeds or
methods it adds to the existing results.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.common.faults import in_one_line
from experiments.common.study import command
from experiments.common.study.lab import Site
from experiments.common.study.options import option, parse
from experiments.common.study.study import Group
from experiments.language_model import cells, layout, logs, plan, report
from experiments.language_model.settings import DEFAULT, OPTIMIZERS, PRESETS, Settings
from experiments.language_model.settings import cells as cells_of

PROG = "python -m experiments.language_model"
_FIELDS = ("text", "optimizer", "steps", "batch_size", "learning_rate", "every", "pattern")


@dataclasses.dataclass(frozen=True)
class Options(command.StudyOptions):
    """Pretrains a language model sparsely, by every method, and densely for comparison."""

    seeds: int = option(1, "runs of every method, each with its own weights, masks and batches")
    preset: str = option("tiny", "the decoder and its recipe", choices=tuple(PRESETS))
    method: str = option(",".join(DEFAULT), "methods, comma-separated")
    sparsity: str = option("0.75,0.9", "fractions of zeros in the kernels, comma-separated")
    text: str | None = option(
        None, "any file, whose bytes are the text (default: tiny_shakespeare)"
    )
    optimizer: str = option("adamw", "of every run", choices=tuple(OPTIMIZERS))
    steps: int | None = option(None, "steps of every run (default: the preset's)")
    batch_size: int | None = option(None, "windows per step (default: the preset's)")
    learning_rate: float | None = option(None, "after the warm-up (default: the preset's)")
    every: int | None = option(
        None, "steps from one mask update to the next (default: the preset's)"
    )
    pattern: str | None = option(
        None, "of the sparse kernels: unstructured (the default), channel, fan_in, N:M or block:RxC"
    )
    compute: str | None = option(
        None,
        "type of the products; parameters are float32 (default: the preset's)",
        choices=("float32", "bfloat16"),
    )
    checkpoint: bool = option(
        False, "compute a layer's activations again in the backward pass", identity=False
    )
    mesh: str | None = option(
        None,
        "devices: fully sharded over data, tensor parallel over model, such as data:4,model:2 "
        "(default: one)",
        identity=False,
    )
    tensorboard: bool = option(False, "also write the curves for TensorBoard", identity=False)
    plan: bool = option(
        False, "show what the first methods need per device, and train nothing", identity=False
    )


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    options = parse(Options, PROG, args)
    if not options.plan:
        command.run(Options, PROG, prepare, args)
        return
    with in_one_line(ValueError, TypeError):
        settings, names, sparsities = _settings(options)
        cells_of(settings, names, sparsities, [options.seed])
        if options.mesh is not None:
            plan.enough_devices(layout.sizes(options.mesh))
        print(plan.text(settings, names, sparsities[-1], options.mesh))


def prepare(options: Options) -> command.Study:
    """The study that the options request.

    Raises:
      ValueError: a value is invalid.
    """
    settings, names, sparsities = _settings(options)
    seeds = range(options.seed, options.seed + options.seeds)
    wanted = cells_of(settings, names, sparsities, seeds)
    if options.tensorboard:
        logs.need_tensorboard()

    def begin(site: Site, left: Sequence[str]) -> tuple[str, list[Group]]:
        mesh = None
        if options.mesh is not None:
            mesh = layout.make_mesh(options.mesh)
            layout.check_batch(settings.batch_size, mesh)
        lab = cells.build(settings, site, sparsities, mesh, options.tensorboard)
        return lab.text.description, [cells.group(lab, c) for c in wanted if c.name in left]

    return command.Study(
        f"language_model-{options.preset}",
        _identity(options, settings),
        [cell.name for cell in wanted],
        cells.content_of,
        f"{settings.steps:,} steps",
        begin,
        report.report,
        by_seed=True,
    )


def _settings(options: Options) -> tuple[Settings, list[str], tuple[float, ...]]:
    settings = PRESETS[options.preset]
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    shape = settings.architecture
    if options.compute is not None:
        shape = dataclasses.replace(shape, compute=options.compute)
    if options.checkpoint:
        shape = dataclasses.replace(shape, checkpoint=True)
    settings = dataclasses.replace(settings, architecture=shape, **given)
    settings.check()
    try:
        sparsities = tuple(float(text) for text in options.sparsity.split(","))
    except ValueError:
        raise ValueError(
            f"--sparsity must be comma-separated numbers, got {options.sparsity!r}."
        ) from None
    return settings, [name for name in options.method.split(",") if name], sparsities


def _identity(options: Options, settings: Settings) -> dict[str, Any]:
    """Seeds, methods and sparsities are not part of it: more can be added to a folder."""
    found = command.identity(options, settings)
    del found["replicates"], found["seed"], found["architecture"]["checkpoint"]
    return found | {"lift": settings.lift, "rewind": settings.rewind}


if __name__ == "__main__":
    main()
