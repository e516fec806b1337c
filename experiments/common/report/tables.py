"""The results of a run: statistics over its replicates, and tables for people to read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.report.console import Console, print_table

Statistics = dict[str, float]
STATISTICS = dict.fromkeys(("mean", "std", "standard_error", "min", "max"), float) | {"n": int}
"""What `statistics` returns, in the form that `files.check` takes."""


def statistics(values: Sequence[float]) -> Statistics:
    """Mean and spread of one number over replicates.

    `std` is the sample standard deviation, with denominator n - 1, and
    `standard_error = std / sqrt(n)`. A single value has no spread to measure: then both are 0.0,
    and tables show none.

    Args:
      values: at least one number.

    Returns:
      `{mean, std, standard_error, min, max, n}`.

    Raises:
      ValueError: there is no value.

    Example:
      >>> found = statistics([0.5, 0.7, 0.9])
      >>> [round(found[name], 3) for name in ("mean", "std", "standard_error")]
      [0.7, 0.2, 0.115]
    """
    n = len(values)
    if n == 0:
        raise ValueError("values must hold at least one number, got none.")
    values = [float(value) for value in values]
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    return {
        "mean": mean,
        "std": math.sqrt(variance),
        "standard_error": math.sqrt(variance / n),
        "min": min(values),
        "max": max(values),
        "n": n,
    }


def percent(found: Statistics, digits: int = 2) -> str:
    """Mean and standard error of a fraction, in percent.

    Example:
      >>> percent(statistics([0.97, 0.98, 0.99]))
      '98.00 ± 0.58 %'
      >>> percent(statistics([0.5]))
      '50.00 %'
    """
    return (
        _with_error(100 * found["mean"], 100 * found["standard_error"], found["n"], digits) + " %"
    )


def number(found: Statistics, digits: int = 2) -> str:
    """Mean and standard error of a number.

    Example:
      >>> number(statistics([1900, 2000, 2000]), 0)
      '1,967 ± 33'
      >>> number(statistics([0.5]))
      '0.50'
    """
    return _with_error(found["mean"], found["standard_error"], found["n"], digits)


def _with_error(mean: float, error: float, n: int, digits: int) -> str:
    # A single value has no error.
    text = f"{mean:,.{digits}f}"
    return f"{text} ± {error:,.{digits}f}" if n > 1 else text


def count(number: float) -> str:
    """A large count in three digits.

    Example:
      >>> [count(n) for n in (999, 26_620, 266_200, 4_300_992)]
      ['999', '26.6 k', '266 k', '4.30 M']
    """
    return _scaled(number, 1000, ("", "k", "M", "G", "T"))


def size(number: float) -> str:
    """A number of bytes.

    Example:
      >>> [size(n) for n in (12, 2048, 3_500_000)]
      ['12 B', '2.00 KiB', '3.34 MiB']
    """
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    """A time as a person would say it.

    Example:
      >>> [duration(s) for s in (0.4, 12, 125, 7320)]
      ['1 s', '12 s', '2 min 5 s', '2 h 2 min']
    """
    seconds = max(1, math.ceil(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column aligned left and the others right.

    Example:
      >>> print(markdown(["method", "90%"], [["dense", "98.1"]]))
      | method | 90% |
      |---|--:|
      | dense | 98.1 |
    """
    rule = "|---|" + "--:|" * (len(header) - 1)
    return "\n".join([_row(header), rule, *(_row(row) for row in rows)])


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The table of a finished run: the dense twin and the sparse network side by side."""
    methods = [summary] if summary["dense"] is None else [summary["dense"], summary]
    n = summary["test_accuracy"]["n"]
    header, rows = ["", *(_name(method) for method in methods)], []
    for key in ("test_accuracy", "validation_accuracy"):
        if key in summary:
            label = key.replace("_", " ")
            rows.append([label, *(percent(method[key]) for method in methods)])
    for label, key, show in _ROWS:
        first, *others = (method[key] for method in methods)
        shares = (f"{show(value)} ({100 * value / first:.3g}%)" for value in others)
        rows.append([label, show(first), *shares])
    paces = summary.get("seconds_per_step", {})
    if all(method["algorithm"] in paces for method in methods):
        first, *others = (paces[method["algorithm"]] for method in methods)
        shares = (f"{1000 * spent:.3g} ms ({spent / first:.2f}x)" for spent in others)
        rows.append(["time of a step", f"{1000 * first:.3g} ms", *shares])
    title = f"{summary['model']} on {summary['dataset']}"
    print_table(console, title, header, rows, markdown(header, rows))
    console.print(
        f"Mean{' ± standard error' if n > 1 else ''} of {n} replicate{'s' * (n > 1)}; "
        f"{duration(summary['seconds'])} in all. Data: {summary['dataset_description']}. FLOPs "
        "count living weights only, which arrays with masks do not save.",
        highlight=False,
    )


_ROWS = (
    ("living weights", "alive", lambda n: f"{round(n):,}"),
    ("FLOPs per example, forward pass", "flops", count),
    ("FLOPs per example, training step", "training_flops", count),
    ("bytes stored", "bytes_stored", size),
    ("bytes while training", "bytes_training", size),
)


def _name(method: Mapping[str, Any]) -> str:
    if method["algorithm"] == "dense":
        return "dense"
    return f"{method['algorithm']} {100 * method['sparsity']:.4g}% sparse"


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while abs(number) >= base - 0.5 and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 else max(0, 2 - int(math.log10(max(abs(number), 1))))
    return f"{number:.{digits}f} {units[power]}".rstrip()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
