"""What looks like masks, scores or states and is none is refused; what is wrong is said once."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse
from jaxsparse import analysis, lottery

DRAW = np.random.default_rng(0)
PARAMS = {
    "fc": {"kernel": jnp.asarray(DRAW.normal(size=(4, 6)), jnp.float32), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.asarray(DRAW.normal(size=(6, 4)), jnp.float32)},
}
MASKS = jaxsparse.prune_by_magnitude(PARAMS, 0.5)
SCORES = jaxsparse.magnitude(PARAMS)
BATCHES = jnp.ones((1, 3, 4))
DENSE = {"fc/kernel": 1.0, "head/kernel": 1.0}
SGD = optax.sgd(0.1, momentum=0.9)


def loss(params, batch=None):
    return jnp.sum((batch @ params["fc"]["kernel"] + params["fc"]["bias"]) ** 2)


def total(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


MASKED = {
    "density": jaxsparse.density,
    "sparsity": jaxsparse.sparsity,
    "overlap": lambda m: jaxsparse.overlap(m, MASKS),
    "overlap other": lambda m: jaxsparse.overlap(MASKS, m),
    "apply": lambda m: jaxsparse.apply(PARAMS, m),
    "pack": jaxsparse.pack,
    "prune within": lambda m: jaxsparse.prune(SCORES, 0.5, within=m),
    "prune_by_magnitude": lambda m: jaxsparse.prune_by_magnitude(PARAMS, 0.5, within=m),
    "drop_and_grow": lambda m: jaxsparse.drop_and_grow(m, SCORES, SCORES, 0.5),
    "sparse_init": lambda m: jaxsparse.sparse_init(0, PARAMS, m),
    "sparse_initializer": lambda m: jaxsparse.sparse_initializer(m["fc"]["kernel"]),
    "set_masks": lambda m: jaxsparse.set_masks(jaxsparse.fixed(SGD, 0.5, key=0).init(PARAMS), m),
    "fixed": lambda m: jaxsparse.fixed(SGD, masks=m),
    "rigl": lambda m: jaxsparse.rigl(SGD, masks=m, key=0),
    "summary": lambda m: jaxsparse.summary(PARAMS, m),
    "gradient_flow": lambda m: analysis.gradient_flow(PARAMS, m),
    "effective_flow": lambda m: analysis.effective_flow(PARAMS, m),
    "flow_across_update": lambda m: analysis.flow_across_update(total, PARAMS, MASKS, m),
    "empty_units": analysis.empty_units,
    "memory": lambda m: analysis.memory(PARAMS, m),
    "flops": lambda m: analysis.flops(loss, PARAMS, m, BATCHES[0]),
    "estimated_speedup": lambda m: analysis.estimated_speedup(DENSE, m),
    "hessian_product": lambda m: analysis.hessian_product(loss, PARAMS, BATCHES, m),
    "exact_hessian": lambda m: analysis.exact_hessian(loss, PARAMS, BATCHES, m),
    "spectrum": lambda m: analysis.spectrum(loss, PARAMS, BATCHES, m, key=0),
    "barrier": lambda m: analysis.barrier(
        analysis.interpolation(total, PARAMS, PARAMS, jnp.linspace(0, 1, 3), masks=m)
    ),
    "shuffle_masks": lambda m: lottery.shuffle_masks(0, m),
    "shuffle_masks global": lambda m: lottery.shuffle_masks(0, m, scope="global"),
    "invert_masks": lottery.invert_masks,
    "layer_densities": lottery.layer_densities,
    "distance": lambda m: lottery.distance(PARAMS, PARAMS, m),
    "prune_to": lambda m: lottery.prune_to(SCORES, MASKS, within=m),
}
WRONG = {
    "float32": PARAMS,
    "int32": jax.tree.map(lambda m: m.astype(jnp.int32), MASKS),
    "uint8; unpack packed masks first": jax.tree.map(lambda m: m.astype(jnp.uint8), MASKS),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", MASKED)
def test_masks_must_be_boolean(name, kind):
    with pytest.raises(TypeError, match=f"must be boolean, got {kind}"):
        MASKED[name](WRONG[kind])


def test_packed_masks_are_told_to_be_unpacked():
    with pytest.raises(
        TypeError, match=r"masks at 'fc/bias'.*uint8.*jaxsparse.unpack\(packed, par"
    ):
        jaxsparse.density(jaxsparse.pack(MASKS))


def test_leaves_without_a_mask_stay_allowed():
    masks = {"fc": {"kernel": MASKS["fc"]["kernel"], "bias": None}, "head": {"kernel": None}}
    assert jaxsparse.density(masks) == 0.5
    assert jaxsparse.apply(PARAMS, masks)["head"]["kernel"] is PARAMS["head"]["kernel"]
    assert analysis.gradient_flow(PARAMS, masks).norm > 0
    assert analysis.memory(PARAMS, masks).masks == 24
    assert jaxsparse.prune(SCORES, 0.75, within=masks)["head"]["kernel"].sum() == 6


def test_a_rule_of_ones_own_makes_boolean_masks():
    rule = jaxsparse.fixed_rule(0.5)
    floats = rule._replace(init=lambda key, params: (params, ()))
    with pytest.raises(TypeError, match="the masks of rule.init at 'fc/bias' must be boolean"):
        jaxsparse.sparsify(SGD, floats, key=0).init(PARAMS)
    numbers = lambda key, count, masks, *_: (jax.tree.map(jnp.int32, masks), ())  # noqa: E731
    tx = jaxsparse.sparsify(SGD, rule._replace(update=numbers, fires=lambda c: c > 0), key=0)
    with pytest.raises(TypeError, match="the masks of rule.update at 'fc/bias' must be boolean"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"pattern": jaxsparse.channel}])
def test_pruning_by_magnitude_is_one_call(options):
    masks = jaxsparse.prune_by_magnitude(PARAMS, 0.5, **options)
    expected = jaxsparse.prune(SCORES, 0.5, **options)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)


def test_scores_of_both_signs_are_warned_of():
    """Ranking parameters by their signed value is hardly ever meant, and GraSP's always."""
    with pytest.warns(UserWarning, match="both signs.*prune_by_magnitude.*signed=True") as seen:
        masks = jaxsparse.prune(PARAMS, 0.5)
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = jaxsparse.prune(PARAMS, 0.5, signed=True)
        jax.tree.map(np.testing.assert_array_equal, masks, meant)
        jax.tree.map(np.testing.assert_array_equal, jax.jit(prune_half)(PARAMS), meant)
        jaxsparse.prune(SCORES, 0.5)
        jaxsparse.prune(jax.tree.map(jnp.negative, SCORES), 0.5)
        jaxsparse.prune(PARAMS | {"fc": SCORES["fc"]}, {"fc": 0.5})  # leaves that stay dense
        jaxsparse.prune_by_magnitude(PARAMS, 0.5)
        jaxsparse.random_masks(0, PARAMS, 0.5)
        scores = jaxsparse.grasp(loss, PARAMS, [BATCHES[0]], prunable=lambda p, _: p == "fc/kernel")
        jaxsparse.prune(scores, 0.5, signed=True)


def prune_half(scores):
    return jaxsparse.prune(scores, 0.5)


class Batch(NamedTuple):
    x: jax.Array
    y: jax.Array


@pytest.mark.parametrize("score", [jaxsparse.snip, jaxsparse.grasp])
@pytest.mark.parametrize(
    "batch", [BATCHES[0], np.ones((3, 4)), {"x": BATCHES[0]}, Batch(BATCHES[0], BATCHES[0]), "x", 3]
)
def test_a_batch_is_no_list_of_batches(score, batch):
    with pytest.raises(TypeError, match=r"batches must be a list of batches, got.*\[batch\]"):
        score(loss, PARAMS, batch)


TX = jaxsparse.rigl(SGD, 0.5, key=0)
STATE = TX.init(PARAMS)
SWAPPED = "swapped"
CALLS = [
    (lambda: TX.update(PARAMS, SGD.init(PARAMS), PARAMS), TypeError, "got tuple.*take_over"),
    (lambda: TX.update(PARAMS, PARAMS, STATE), TypeError, SWAPPED),
    (lambda: TX.update(STATE, PARAMS, PARAMS), TypeError, SWAPPED),
    (lambda: jaxsparse.init(SGD, PARAMS), ValueError, "tx holds no sparse algorithm.*rigl"),
    (lambda: jaxsparse.init(PARAMS, TX), TypeError, SWAPPED),
    (lambda: jaxsparse.init(PARAMS, PARAMS), TypeError, "tx must be an Optax.*got dict"),
    (lambda: jaxsparse.get_masks(PARAMS, STATE), ValueError, SWAPPED),
    (lambda: jaxsparse.set_masks(MASKS, STATE), ValueError, SWAPPED),
    (lambda: jaxsparse.metrics(PARAMS), ValueError, "opt_state holds no sparse state.*dict"),
    (lambda: jaxsparse.metrics(PARAMS, params=STATE), ValueError, SWAPPED),
    (lambda: jaxsparse.get_masks(STATE, {"new": PARAMS}), ValueError, "no such leaf"),
    (lambda: jaxsparse.take_over(SGD, SGD.init(PARAMS), PARAMS), ValueError, "no sparse alg"),
    (
        lambda: jaxsparse.take_over(TX, optax.adam(0.1).init(PARAMS), PARAMS),
        ValueError,
        "dense_state.*first path that differs",
    ),
    (
        lambda: jaxsparse.take_over(TX, SGD.init({"fc": PARAMS["head"]}), PARAMS),
        ValueError,
        "dense_state.*first path that differs is '0/trace/fc/bias'",
    ),
    (
        lambda: jaxsparse.take_over(TX, jax.tree.map(lambda x: x[:1], SGD.init(PARAMS)), PARAMS),
        ValueError,
        r"dense_state at '0/trace/fc/bias' is float32\[1\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), CALLS)
def test_wrong_states_and_swapped_arguments(call, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        call()


def test_init_with_the_optimizer_of_a_model():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)
    with pytest.raises(TypeError, match="tx must be an Optax transformation, got Optimizer"):
        jaxsparse.init(optimizer, model)


@pytest.mark.standard_promotion
def test_multi_steps_is_wrapped():
    bare = jaxsparse.rigl(optax.MultiSteps(SGD, 2), 0.5, key=0)
    wrapped = jaxsparse.rigl(optax.MultiSteps(SGD, 2).gradient_transformation(), 0.5, key=0)
    found = []
    for tx in (bare, wrapped):
        params, state = jaxsparse.init(tx, PARAMS)
        for _ in range(2):
            updates, state = tx.update(PARAMS, state, params)
            params = optax.apply_updates(params, updates)
        found.append(params)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert not np.array_equal(found[0]["fc"]["bias"], PARAMS["fc"]["bias"])
