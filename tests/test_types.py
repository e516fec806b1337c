"""What a type checker says of a user's script: mistakes are errors at their lines, the rest is not.

The user has no settings but the one that every user of Optax needs, which says no types.
"""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

import jaxsparse
from jaxsparse.algorithms import _base
from jaxsparse.targets import Target, TargetOptions

ROOT = pathlib.Path(__file__).parents[1]
METHODS = [name.removesuffix("_rule") for name in jaxsparse.__all__ if name.endswith("_rule")]

# Every line that ends with a comment `# error: ...` is one, and no other line is.
SCRIPTS = {
    "mistakes": """
        import optax
        import jaxsparse
        from jaxsparse import lottery

        sgd = optax.sgd(0.1)
        params = {"kernel": 1.0}
        jaxsparse.rigl(sgd, sparsty=0.9, key=0)  # error: "sparsty"
        jaxsparse.rigl(sgd, 0.9)  # error: Missing named argument "key"
        jaxsparse.rigl(sgd, 0.9, key=0, every="ten")  # error: "every"
        jaxsparse.rigl(sgd, 0.9, key=0, scope="global")  # error: "scope"
        jaxsparse.rigl(sgd, 0.9, key=0, min_alive=0.5)  # error: "min_alive"
        jaxsparse.rigl(sgd, "0.9", key=0)  # error: Argument 2
        jaxsparse.rigl_rule(0.9, key=0)  # error: "key"
        jaxsparse.rigl_rule(0.9, regrown_state="keep")  # error: "regrown_state"
        jaxsparse.rigl.rule(0.9)  # error: "rule"
        jaxsparse.fixed(sgd, 0.9, key=0, regrown_state="keep")  # error: "regrown_state"
        jaxsparse.gradual(sgd, 0.9, start=0)  # error: Missing named argument "stop"
        jaxsparse.gradual(sgd, 0.9, start=0, stop=9, masks=params)  # error: "masks"
        jaxsparse.deep_rewiring(sgd, 0.9, key=0, l2=0.1)  # error: "l2"
        jaxsparse.sparse_momentum(sgd, 0.9, key=0, growth=3)  # error: "growth"
        jaxsparse.prune(params, 0.9, patern=jaxsparse.channel)  # error: "patern"
        jaxsparse.prune_iteratively(lambda p: p, params, 0.9, prunabel=None)  # error: "prunabel"
        jaxsparse.sparsify(sgd, jaxsparse.rigl, key=0)  # error: Argument 2
        lottery.find_tickets(lambda key, p, masks: p, params, 0, round=2)  # error: "round"
        lottery.densities(params, 2, scoep="global")  # error: "scoep"
    """,
    "methods": """
        import jax
        import jax.numpy as jnp
        import optax
        import jaxsparse

        sgd = optax.sgd(0.1)
        params = {"kernel": jnp.ones((4, 4))}
        masks = jaxsparse.random_masks(0, params, 0.5)

        def prunable(path: str, leaf: jax.Array) -> bool:
            return path.endswith("kernel")

        def first_value(key: jax.Array, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return params

        @CALLS@
        jaxsparse.rigl(sgd, {"head": 0.5, "": 0.9}, key=jax.random.key(0), skip_update=False)
        jaxsparse.rigl(sgd, masks=masks, key=0, drop_fraction=jaxsparse.schedules.cosine(0.3, 9))
        jaxsparse.rigl(sgd, 0.5, key=0, min_salient=0.3, keep_units=["head"], accumulate=3)
        jaxsparse.sparse_evolution(sgd, 0.5, key=0, drop_fraction=0.2, drop_by="sign", stop=9)
        jaxsparse.sparse_momentum(sgd, 0.5, key=0, second_moment=0.999, growth="random")
        jaxsparse.dynamic_reparameterization(sgd, 0.5, key=0, threshold=0.1, target=0.2)
        jaxsparse.deep_rewiring(sgd, 0.5, key=0, noise=0.1, sign="free")
        jaxsparse.gradual(sgd, 0.5, start=0, stop=9, every=3, scope="global", key=0)
        jaxsparse.fixed(sgd, masks=masks)
        rule = jaxsparse.rigl_rule(0.9)
        often = jaxsparse.schedules.periodic(every=5)
        rule = jaxsparse.fixed_rule(0.9)._replace(fires=often, grows=True)
        jaxsparse.sparsify(sgd, rule, key=0, skip_update=True, first_value=first_value)
    """,
    "functions": """
        import jax
        import jax.numpy as jnp
        import optax
        import jaxsparse
        from jaxsparse import analysis, lottery, selection

        params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
        tx = jaxsparse.rigl(optax.adamw(1e-3), sparsity=0.9, key=0, every=100, stop=75_000)
        params, state = jaxsparse.init(tx, params)

        @jax.jit
        def step(params: dict[str, jax.Array], state: optax.OptState) -> tuple[object, object]:
            updates, state = tx.update(params, state, params)
            return optax.apply_updates(params, updates), state

        density: jax.Array = jaxsparse.metrics(state, params=params)["density"]
        masks = jaxsparse.get_masks(state, params)
        state = jaxsparse.set_masks(state, masks, tx=tx, params=params)
        state = jaxsparse.reset(tx, state, params)
        state = jaxsparse.take_over(tx, optax.adamw(1e-3).init(params), params)
        scores = jaxsparse.magnitude(params)
        masks = jaxsparse.prune(scores, 0.5, pattern=jaxsparse.n_m(2, 4), axes="flax")
        masks = jaxsparse.prune(scores, {"kernel": 0.5}, within=masks, min_alive="unit")
        masks = jaxsparse.prune(scores, 0.5, scope="global", signed=True)
        masks = jaxsparse.prune_by_magnitude(params, 0.5, distribution=jaxsparse.erk)
        masks = jaxsparse.prune_by_magnitude(params, 0.5, distribution={"kernel": 0.5, "bias": 0.0})
        masks = jaxsparse.prune_iteratively(lambda p: p, params, 0.5, rounds=3, min_alive=0)
        masks = jaxsparse.drop_and_grow(masks, scores, scores, 0.2, importance=scores)
        axes = {"kernel": jaxsparse.Axes(inputs=(0,), outputs=(1,))}
        params = jaxsparse.sparse_init(0, jaxsparse.apply(params, masks), masks, axes=axes)
        text: str = jaxsparse.summary(params, masks)
        ramp: float = jaxsparse.schedules.cubic(0.8, 0, 4)(3)
        mask: jax.Array = selection.top_k_mask(jnp.arange(4.0), 2)

        def train(key: jax.Array, params: object, masks: object) -> object:
            return params

        tickets = lottery.find_tickets(train, params, 0, rounds=2, rates={"": 0.2}, scope="layer")
        found: list[float] = [ticket.density for ticket in tickets]
        found = lottery.densities(params, 2, 0.2, scope="global", prunable=None, min_alive=1)
        units = analysis.empty_units(masks, axes=axes)
    """,
}
SHARED = {
    "distribution": "jaxsparse.erk",
    "prunable": "prunable",
    "pattern": "jaxsparse.unstructured",
    "axes": '"flax"',
    "min_alive": "2",
    "masks": "None",
    "regrown_state": '"keep"',
    "first_value": "first_value",
    "storage": '"compressed"',
    "room": "2.0",
    "window": "10",
    "mask_storage": '"packed"',
}


def calls():
    """A call of every method, and of its rule, with every option that it shares."""
    for name in METHODS:
        left_out = {
            "fixed": {"regrown_state", "first_value", "room", "window"},
            "gradual": {"masks"},
        }.get(name, ())
        given = {k: v for k, v in SHARED.items() if k not in left_out}
        given |= {"start": "0", "stop": "9"} if name == "gradual" else {}
        yield f"jaxsparse.{name}(sgd, 0.9, key=0, {spelled(given)})"
        given = {k: v for k, v in given.items() if k not in _base.WrapOptions.__annotations__}
        yield f"jaxsparse.{name}_rule(0.9, {spelled(given)})"


def spelled(given):
    return ", ".join(f"{key}={value}" for key, value in given.items())


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy says of the scripts: `{(script, line): text}`."""
    folder = tmp_path_factory.mktemp("types")
    for name, text in SCRIPTS.items():
        text = textwrap.dedent(text).strip().replace("@CALLS@", "\n".join(calls()))
        (folder / f"{name}.py").write_text(text + "\n")
    settings = ["--ignore-missing-imports", "--follow-imports=silent", "--config-file="]
    cache = ["--cache-dir", str(folder / "cache"), "--no-error-summary", "--hide-error-context"]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, *cache, *(f"{name}.py" for name in SCRIPTS)],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert not found.stderr, found.stderr
    told = {}
    for line in found.stdout.splitlines():
        place = re.fullmatch(r"(\w+)\.py:(\d+): (error: .*)", line)
        if place:
            told.setdefault((place[1], int(place[2])), place[3])
    return folder, told


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_checker_finds_the_mistakes_and_nothing_else(said, script):
    folder, told = said
    lines = (folder / f"{script}.py").read_text().splitlines()
    for number, line in enumerate(lines, 1):
        expected = re.search(r"# error: (.*)", line)
        text = told.get((script, number), "")
        assert (expected[1] in text) if expected else not text, f"{line}\n  {text}"
    assert len(lines) > 20


def test_the_options_are_the_fields_of_a_target():
    assert set(TargetOptions.__annotations__) == set(Target._fields) - {"sparsity", "scope"}
    assert set(SHARED) == set(_base.SparseOptions.__annotations__)
