"""Bytes that training keeps and needs, for each algorithm and each form of storage.

    python -m benchmarks.memory     # ResNet-50 shapes; some minutes, all of it compiling
    python -m benchmarks.memory --optimizer adam --method rigl

Bytes per weight: parameters, what describes their masks (masks, bits or places), the state of the
inner optimizer and of the rule, and what the compiled optimizer step with its mask update needs
besides its arguments (donated, without forward and backward pass). With storage "compressed" the
last depends on the network: see `benchmarks.sparse_training`.
"""

import argparse

import jax
import optax

import jaxsparse
from benchmarks.step import OPTIMIZERS, SHAPES, SPARSITY, variant, weights
from benchmarks.timing import optimizer_step, step_in_place
from experiments.common.report.tables import markdown
from experiments.common.training.methods import METHODS
from jaxsparse import sparse

FORMS: dict[str, dict[str, str]] = {
    "masks": {},
    "packed": {"mask_storage": "packed"},
    "compressed_state": {"storage": "compressed_state"},
    "compressed": {"storage": "compressed"},
}


def measure(
    inner: optax.GradientTransformation, shapes: list[tuple[int, ...]], name: str, form: str
) -> list[float | None]:
    """Bytes per weight of parameters, masks, inner state, rule state and temporary memory."""
    dense = weights(shapes, 0)
    size = sum(leaf.size for leaf in jax.tree.leaves(dense))
    tx = variant(name, inner, 100, **FORMS[form])
    if METHODS[name].make is None:
        params, state = dense, tx.init(dense)
        found = [sparse.nbytes(params), 0, sparse.nbytes(state), 0]
    else:
        params, state = jaxsparse.init(tx, dense)
        values = sparse.values(params)
        places = sparse.nbytes(params) - sparse.nbytes(values) + sparse.nbytes(state.masks)
        found = [
            sparse.nbytes(values),
            places,
            sparse.nbytes(state.inner_state),
            sparse.nbytes(state.rule_state),
        ]
    temporary = None
    if form != "compressed":
        patched = form == "compressed_state"
        step = jax.jit(step_in_place(tx) if patched else optimizer_step(tx), donate_argnums=(0, 1))
        compiled = step.lower(params, state, dense).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
    return [None if n is None else n / size for n in (*found, temporary)]


def main() -> None:
    """Prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", choices=SHAPES, default="resnet50")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="momentum")
    parser.add_argument(
        "--method", default=",".join(METHODS), help="comma-separated (default: all)"
    )
    args = parser.parse_args()
    head = ["", "parameters", "masks", "optimizer", "rule", "temporary", "in all"]
    print(f"{args.leaves}, {args.optimizer}, {100 * SPARSITY:g}% sparse, bytes a weight")
    print(markdown(head, []), flush=True)
    for name in args.method.split(","):
        for form in ["masks"] if METHODS[name].make is None else FORMS:
            try:
                found = measure(OPTIMIZERS[args.optimizer], SHAPES[args.leaves], name, form)
            except ValueError as error:
                print(f"| {name}, {form} | {str(error).splitlines()[0]} |", flush=True)
                continue
            known = [n for n in found if n is not None]
            cells = ["" if n is None else f"{n:.2f}" for n in (*found, sum(known))]
            print(f"| {' | '.join([f'{name}, {form}', *cells])} |", flush=True)


if __name__ == "__main__":
    main()
