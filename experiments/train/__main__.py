"""Trains a sparse network together with its dense twin, and shows what sparsity gains and costs.

    python -m experiments.train                                    # digits; under a minute
    python -m experiments.train --dataset mnist --sparsity 0.95    # MNIST; about two minutes

Without arguments: LeNet-300-100 with 90% of its weights zero, trained by RigL on scikit-learn's
digits, 3 replicates. Expect about 98% test accuracy, also from its dense twin; on MNIST at 95%
sparsity 98.2%, and 98.6% from the dense twin.

The output folder receives the configuration, metrics, checkpoints, a summary and three pictures.
Without `--out`, its name reflects the configuration, and the same command resumes the run where it
was stopped, or prints the table of the finished run; for a folder named by `--out`, that requires
`--resume`. A folder that holds another run is never written to.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.common.faults import in_one_line
from experiments.common.report.console import Console
from experiments.common.report.tables import print_summary
from experiments.common.study.folder import find_run
from experiments.common.study.options import identity, parse
from experiments.train import measures
from experiments.train.config import Config, default_folder, resolve
from experiments.train.job import build
from experiments.train.run import execute

PROG = "python -m experiments.train"


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    config = parse(Config, PROG, args)
    console = Console(markup=False)
    with in_one_line(ValueError, TypeError):
        config = resolve(config)
        path = Path(config.out) if config.out else default_folder(config)
        folder = find_run(path, identity(config), resume=config.resume or config.out is None)
        summary = folder.summary(measures.SUMMARY)
        job = None if summary else build(config)
    if job is None:
        console.print(f"{path} holds this run, finished before. Its table:")
        print_summary(console, summary)
        return
    goes_on = f"stopped; the same command with --resume continues from {path}"
    with in_one_line(interrupted=goes_on), folder:
        summary = execute(job, folder, console)
        print_summary(console, summary)
        console.print(f"Pictures and metrics are in {path}.")


if __name__ == "__main__":
    main()
