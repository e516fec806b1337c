"""Trains a sparse network beside its dense twin, and shows what that gains and costs.

    python -m experiments.train                                    # digits; under a minute
    python -m experiments.train --dataset mnist --sparsity 0.95    # MNIST; about two minutes

With no arguments: LeNet-300-100 with 90% of its weights zero, trained by RigL on the digits inside
scikit-learn, 3 replicates. Expect about 98% test accuracy, from its dense twin too; on MNIST at 95%
sparsity 98.2%, and 98.6% from the dense twin.

The output folder receives the configuration, metrics, checkpoints, a summary and three pictures.
Without `--out` its name says the configuration, and the same command once more goes on where it was
stopped, or prints the table of the finished run; a folder named by `--out` wants `--resume` for
that. A folder that holds another run is never written to.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.common import cli, jobs, measures, reports, running, runs
from experiments.common.config import Config, default_folder, resolve
from experiments.common.console import Console
from experiments.common.faults import in_one_line

PROG = "python -m experiments.train"


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    config = cli.parse(Config, PROG, args)
    console = Console(markup=False)
    with in_one_line(ValueError, TypeError):
        config = resolve(config)
        path = Path(config.out) if config.out else default_folder(config)
        folder = runs.find_run(
            path, cli.identity(config), resume=config.resume or config.out is None
        )
        summary = folder.summary(measures.SUMMARY)
        job = None if summary else jobs.build(config)
    if job is None:
        console.print(f"{path} holds this run, finished before. Its table:")
        reports.print_summary(console, summary)
        return
    goes_on = f"stopped; the same command with --resume goes on from {path}"
    with in_one_line(interrupted=goes_on), folder:
        summary = running.execute(job, folder, console)
        reports.print_summary(console, summary)
        console.print(f"Pictures and metrics are in {path}.")


if __name__ == "__main__":
    main()
