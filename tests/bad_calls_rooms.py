"""The same as `bad_calls` for the functions of `jaxsparse.analysis`, `lottery` and `selection`."""

import jax.numpy as jnp
import numpy as np

import jaxsparse
from tests import bad_values as bad
from tests.bad_calls import (
    BATCH,
    HESSIAN,
    MASK,
    SGD,
    SOME,
    SPREAD,
    TARGET,
    WHERE,
    loss,
)
from tests.bad_values import LOGITS, MASKS, PARAMS

SCORES = jnp.arange(6.0)
STACKED = [None, "text", 3, {}, jnp.ones(3), jnp.ones((3, 4)), jnp.ones((1, 3, 4)), object()]
REFERENCE = [None, "text", 3, {}, jnp.ones(3), jnp.ones((2, 4)), jnp.ones((3, 5)), object()]
VECTOR = [None, "text", 3, {}, jnp.ones((2, 2)), jnp.ones(0), object()]
RATES = [*(v for v in bad.FRACTION), 0.0, 1.0, *bad.REGEXES[3:8]]
SPECTRUM = HESSIAN | {"masks": SOME}
PRODUCT = {"loss": loss, "params": PARAMS, "batches": BATCH}
COSTS = {"fc/kernel": 2.0}
SCORED = [None, "text", 3, {}, MASK, jnp.arange(3), object()]
EVERYWHERE = [value for value in bad.FUNCTION if value is not None]


def mean(params):
    return loss(params, BATCH[0])


def train(key, params, masks, **span):
    return params


ANALYSIS = {
    "agreement": (
        {"logits": LOGITS, "labels": jnp.array([0, 1, 2])},
        {
            "logits": STACKED,
            "labels": [None, "text", 3, jnp.ones(3), jnp.array([0]), jnp.zeros((3, 1), int)],
        },
    ),
    "barrier": ({"losses": jnp.arange(3.0)}, {"losses": [*VECTOR, jnp.ones(1)]}),
    "disagreement": (
        {"logits": LOGITS, "reference": LOGITS[0]},
        {"logits": [*STACKED[:5], object()], "reference": REFERENCE},
    ),
    "divergence": (
        {"logits": LOGITS, "reference": LOGITS[0]},
        {"logits": [*STACKED[:5], object()], "reference": REFERENCE},
    ),
    "distances": (
        {"solutions": [PARAMS, PARAMS]},
        {"solutions": [None, "text", 3, [], [None], ["text"], [PARAMS, bad.SAME[-1]], object()]},
    ),
    "effective_flow": (
        {"grads": PARAMS, "masks": MASKS},
        {"grads": bad.TREE, "masks": bad.FITTING},
    ),
    "estimated_speedup": (
        {"dense": COSTS, "masks": MASKS},
        {
            "dense": [None, 3, "text", {}, {"fc/kernel": -1.0}, {"fc/kernel": "2"}, {"no": 1.0}],
            "masks": bad.BOOLEANS,
            "inputs": ["text", 3, {"no": BATCH}, {"fc/kernel": "x"}, {"fc/kernel": jnp.ones(4)}],
            "axes": bad.FOUND_AXES,
        },
    ),
    "empty_units": (
        {"masks": MASKS},
        {"masks": bad.BOOLEANS, "axes": bad.FOUND_AXES} | WHERE,
    ),
    "exact_hessian": (
        PRODUCT,
        SPECTRUM | {"rows": bad.FROM_ONE_SIZE, "memory": [0, -1, "1", None, 2.5]},
    ),
    "exact_spectrum": (
        PRODUCT,
        SPECTRUM | {"rows": bad.FROM_ONE_SIZE, "memory": [0, -1, "1", None, 2.5]},
    ),
    "first_order_change": (
        {"grads": PARAMS, "updates": PARAMS},
        {"grads": bad.TREE, "updates": bad.SAME},
    ),
    "flops": (
        {"fn": lambda params: params["fc"]["kernel"] * 2, "params": PARAMS, "masks": MASKS},
        {
            "fn": bad.FUNCTION,
            "params": bad.TREE,
            "masks": SOME,
            "batch_size": bad.FROM_ONE_SIZE,
        },
    ),
    "flow_across_update": (
        {"loss": mean, "params": PARAMS, "before": MASKS, "after": MASKS},
        {
            "loss": bad.FUNCTION,
            "params": bad.TREE,
            "before": bad.FITTING,
            "after": bad.FITTING,
        },
    ),
    "gradient_flow": ({"grads": PARAMS, "masks": MASKS}, {"grads": bad.TREE, "masks": SOME}),
    "hessian_product": (PRODUCT, SPECTRUM),
    "instability": (
        {"function": mean, "start": PARAMS, "end": PARAMS, "points": 3},
        {
            "function": bad.FUNCTION,
            "start": bad.TREE,
            "end": bad.SAME,
            "points": [*bad.FROM_ONE_SIZE, 2],
        },
    ),
    "interpolation": (
        {"function": mean, "start": PARAMS, "end": PARAMS, "alphas": jnp.ones(2)},
        {
            "function": bad.FUNCTION,
            "start": bad.TREE,
            "end": bad.SAME,
            "alphas": [value for value in VECTOR if value is not None],
            "masks": SOME,
        },
    ),
    "lanczos": (
        {"product": lambda v: v, "n": 3, "steps": 2, "key": 0},
        {
            "product": bad.FUNCTION,
            "n": bad.FROM_ONE_SIZE,
            "steps": [*bad.FROM_ONE_SIZE, 4],
            "key": bad.KEY,
        },
    ),
    "memory": (
        {"params": PARAMS, "masks": MASKS},
        {"params": bad.TREE, "masks": SOME},
    ),
    "multidimensional_scaling": (
        {"distances": jnp.ones((3, 3)) - jnp.eye(3)},
        {
            "distances": [None, "text", 3, {}, jnp.ones(3), jnp.ones((2, 3)), object()],
            "dimensions": [*bad.FROM_ONE_SIZE, 4],
        },
    ),
    "record_flow": ({"inner": SGD}, {"inner": bad.INNER}),
    "signal_propagation": (
        {"forward": mean, "params": PARAMS, "sparsities": [0.5], "key": 0},
        SPREAD
        | {
            "forward": bad.FUNCTION,
            "params": bad.TREE,
            "sparsities": [None, 0.5, "0.5", [], [1.5], ["0.5"], [None], object()],
            "key": bad.KEY,
            "init": bad.CHOICE,
        },
    ),
    "spectrum": (
        PRODUCT | {"key": 0, "steps": 2},
        SPECTRUM | {"steps": bad.FROM_ONE_SIZE, "draws": bad.FROM_ONE_SIZE, "key": bad.KEY},
    ),
    "spectrum_across_update": (
        PRODUCT | {"before": MASKS, "after": MASKS, "key": 0, "steps": 2},
        HESSIAN | {"before": bad.FITTING, "after": bad.FITTING, "key": bad.KEY},
    ),
    "train_bezier": (
        {"loss": loss, "start": PARAMS, "end": PARAMS, "batches": BATCH, "optimizer": SGD}
        | {"key": 0},
        {
            "loss": bad.FUNCTION,
            "start": bad.TREE,
            "end": bad.SAME,
            "batches": bad.BATCHES,
            "optimizer": bad.INNER,
            "key": bad.KEY,
            "masks": SOME,
        },
    ),
    "training_flops": (
        {"dense": 3.0, "sparse": 1.0, "method": "rigl", "every": 9},
        {
            "dense": bad.NOT_NEGATIVE,
            "sparse": bad.NOT_NEGATIVE,
            "method": bad.CHOICE,
            "every": bad.FROM_ONE,
        },
    ),
}
ANALYSIS["summary"] = ({"params": PARAMS, "masks": MASKS}, {"params": bad.TREE, "masks": SOME})
CRITERION = (
    {"key": 0, "initial": PARAMS, "trained": PARAMS},
    {"initial": bad.TREE, "trained": bad.SAME},
)
ROUNDS = {"params": PARAMS, "rounds": 2}
LADDER = TARGET | {
    "params": bad.TREE,
    "rounds": bad.FROM_ONE_SIZE,
    "rates": RATES,
    "scope": bad.CHOICE,
}
LOTTERY = {
    "add_noise": (
        {"key": 0, "params": PARAMS, "sigma": 1.0},
        {"key": bad.KEY, "params": bad.TREE, "sigma": bad.NOT_NEGATIVE} | WHERE,
    ),
    "chance": (
        {"key": 0, "initial": PARAMS, "trained": PARAMS},
        {"key": bad.KEY, "trained": bad.TREE},
    ),
    "densities": (ROUNDS, LADDER),
    "ladder": (ROUNDS, LADDER),
    "distance": (
        {"params": PARAMS, "origin": PARAMS},
        {"params": bad.TREE, "origin": bad.SAME, "masks": SOME},
    ),
    "early_stop": (
        {"losses": jnp.ones(3), "every": 2},
        {"losses": [v for v in VECTOR if getattr(v, "ndim", 0) != 2], "every": bad.FROM_ONE},
    ),
    "final_magnitude": (CRITERION[0], {"trained": bad.TREE}),
    "initial_magnitude": (CRITERION[0], {"initial": bad.TREE}),
    "least_magnitude": (CRITERION[0], {"trained": bad.TREE}),
    "magnitude_increase": CRITERION,
    "movement": CRITERION,
    "find_tickets": (
        {"train": train, "params": PARAMS, "key": 0, "rounds": 1},
        LADDER
        | {
            "train": bad.FUNCTION,
            "key": bad.KEY,
            "rewind": [*bad.CHOICE, 3],
            "criterion": EVERYWHERE,
        },
    ),
    "invert_masks": ({"masks": MASKS}, {"masks": bad.BOOLEANS} | WHERE),
    "keep_signs": (
        {"params": PARAMS},
        {"params": bad.TREE, "magnitudes": [v for v in bad.SAME if v is not None]} | WHERE,
    ),
    "layer_densities": ({"masks": MASKS}, {"masks": bad.BOOLEANS} | WHERE),
    "prune_to": (
        {"scores": PARAMS, "alive": jaxsparse.lottery.ladder(PARAMS, 1)[1]},
        TARGET
        | {
            "scores": bad.TREE,
            "alive": [None, "text", 3, {}, PARAMS, object()],
            "within": SOME,
            "scope": bad.CHOICE,
        },
    ),
    "shuffle_masks": (
        {"key": 0, "masks": MASKS},
        {"key": bad.KEY, "masks": bad.BOOLEANS, "scope": bad.CHOICE} | WHERE,
    ),
    "trained": (
        {"result": PARAMS, "params": PARAMS},
        {"result": [None, "text", 3, (), {}], "params": bad.TREE},
    ),
}
RANKS = [-1, 7, 1.5, "2", True, None, np.float32(2), object()]
SELECTION = {
    "top_k_mask": (
        {"scores": SCORES, "k": 2},
        {
            "scores": SCORED,
            "k": RANKS,
            "axis": [1.5, "0", True, 1, -2],
            "where": ["text", 3, SCORES, jnp.ones(5, bool), {}],
        },
    ),
    "kth_largest": (
        {"scores": SCORES, "k": 2},
        {"scores": [*SCORED, jnp.ones(0)], "k": [*RANKS, 0]},
    ),
    "global_top_k_masks": (
        {"score_tree": PARAMS, "k": 2},
        {"score_tree": [*bad.TREE, MASKS], "k": [*RANKS[:1], 1000, *RANKS[2:]], "where": SOME},
    ),
}
