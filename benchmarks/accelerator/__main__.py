"""The most valuable measurements on an accelerator, as far as the available minutes allow.

    python -m benchmarks.accelerator --list                 # what is done and what is left
    python -m benchmarks.accelerator --minutes 9
    python -m benchmarks.accelerator --pack runs/packed     # CIFAR-10 in one file of 18 MB
    python -m benchmarks.accelerator --tiny                 # everything, in a minute on a CPU

Each result is written at once; the next call continues where this one ended. It needs no network,
and neither tensorflow-datasets, array_record nor rich: see docs/speed.md.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator import jobs, queue, table
from experiments.common.data import packed
from experiments.common.faults import in_one_line, stop

PROG = "python -m benchmarks.accelerator"
RESULTS, TINY_RESULTS = "docs/results/accelerator", "runs/accelerator-tiny"


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      args: its arguments; by default those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show what is done and left, and exit")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this many")
    parser.add_argument("--tiny", action="store_true", help="try everything at a tiny scale")
    parser.add_argument("--data-dir", help="folder of the data sets (default: $TFDS_DATA_DIR)")
    parser.add_argument("--out", help=f"results (default: {RESULTS}; {TINY_RESULTS} with --tiny)")
    parser.add_argument("--pack", metavar="FOLDER", help=f"write {jobs.DATASET}.npz, and exit")
    options = parser.parse_args(given)
    if options.pack is not None:
        with in_one_line(ValueError):
            file = packed.write(jobs.DATASET, Path(options.pack), options.data_dir)
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
        return
    if not options.minutes > 0:
        stop(f"--minutes must be above 0, got {options.minutes}.")
    wanted = jobs.tiny() if options.tiny else jobs.queue(options.data_dir)
    out = Path(options.out or (TINY_RESULTS if options.tiny else RESULTS))
    with in_one_line(interrupted="stopped; the same command continues from here"):
        print(queue.listing(wanted, out), flush=True)
        if options.list:
            return
        command = shlex.join([PROG, *given]).replace(f"'{PROG}'", PROG)
        report = lambda: table.write(wanted, out)  # noqa: E731
        failed = queue.work(wanted, out, options.minutes, command, report)
        print(queue.listing(wanted, out))
    if failed:
        stop(f"failed: {', '.join(failed)}", code=1)


if __name__ == "__main__":
    main()
