"""How fast the exact selection is next to a sort, `lax.top_k` and one pass over the memory.

    python -m benchmarks.selection                      two to five minutes on two CPU cores
    python -m benchmarks.selection --sizes 100000       a few seconds

Every method runs once per round, in turn, so that other load slows all of them alike. The table
gives the median time, how many passes (`x * 2 + 1`) that is, and how many times faster than the
sort. `k` is a tenth of `n`; scores are magnitudes of normal numbers, for float32 also with 95%
zeros, so that the cut falls among ties.

Goals on a CPU (float32): at 10^7 within 3 passes for the threshold and 6 for the whole mask; at
10^6 at least 25 times faster than the sort.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.selection import kth_largest, top_k_mask

SLOW = 2_000_000
"""`lax.top_k` takes seconds above this many scores, and is left out."""


def ways(n: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """What is compared: functions of the scores alone, compiled."""
    k = n // 10
    found = {
        "one pass": lambda x: x * 2 + 1,
        "kth_largest": lambda x: kth_largest(x, k),
        "top_k_mask": lambda x: top_k_mask(x, k),
        "jnp.sort": jnp.sort,
        "lax.top_k": lambda x: lax.top_k(x, k)[0],
    }
    if n > SLOW:
        del found["lax.top_k"]
    return {name: jax.jit(way) for name, way in found.items()}


def interleaved(
    functions: dict[str, Callable[[jax.Array], jax.Array]], x: jax.Array, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each function over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(x))
            if number:  # the first round compiles
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def scores(n: int, dtype: str, zeros: float) -> jax.Array:
    normal, mask = jax.random.split(jax.random.key(0))
    x = jnp.abs(jax.random.normal(normal, (n,), jnp.float32))
    return jnp.where(jax.random.uniform(mask, (n,)) < zeros, 0, x).astype(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9, help="rounds in turn (default: 9)")
    options = parser.parse_args()

    print(f"jax {jax.__version__} on {jax.devices()[0]}, k = n / 10\n")
    header = ("n", "type", "zeros", "way", "ms", "passes", "faster than sort")
    row = "{:>10}  {:<9} {:>5}  {:<12} {:>9}  {:>7}  {:>16}".format
    print(row(*header))
    for n in options.sizes:
        for dtype in options.dtypes:
            for zeros in (0.0, 0.95) if dtype == "float32" else (0.0,):
                found = interleaved(ways(n), scores(n, dtype, zeros), options.rounds)
                for name, ms in found.items():
                    ratios = f"{ms / found['one pass']:.1f}", f"{found['jnp.sort'] / ms:.1f}"
                    print(row(n, dtype, f"{zeros:.0%}", name, f"{ms:.3f}", *ratios), flush=True)
                print()


if __name__ == "__main__":
    main()
