"""Calls of functions of `jaxsparse` that work, and the values that each argument must refuse."""

import jax.numpy as jnp
import optax

import jaxsparse
from tests import bad_values as bad
from tests.bad_values import MASKS, PARAMS

SGD = optax.sgd(0.1, momentum=0.9)
TX = jaxsparse.rigl(SGD, 0.5, key=0, every=2)
STATE = TX.init(PARAMS)
KERNEL, MASK = PARAMS["fc"]["kernel"], MASKS["fc"]["kernel"]
BATCH = jnp.ones((2, 3, 4))


def loss(params, batch):
    return jnp.mean((batch @ params["fc"]["kernel"] @ params["head"]["kernel"]) ** 2)


WHERE = {"prunable": bad.FILTER}
TARGET = WHERE | {"pattern": bad.PATTERN, "axes": bad.AXES, "min_alive": bad.MIN_ALIVE}
SPREAD = TARGET | {"distribution": bad.DISTRIBUTION}
WRAPPER = SPREAD | {
    "inner": bad.INNER,
    "sparsity": [value for value in bad.SPARSITY if value is not None],
    "key": bad.KEY,
    "regrown_state": bad.CHOICE,
    "skip_update": bad.FLAG,
    "first_value": [value for value in bad.FUNCTION if value is not None],
}
UPDATES = {
    "every": bad.FROM_ONE,
    "start": [value for value in bad.COUNT if value is not None],
    "stop": [*(value for value in bad.COUNT if value is not None), 0],
}
RATE = [value for value in bad.FRACTION if value is not None]
GIVEN = {"inner": SGD, "sparsity": 0.5, "key": 0}
HESSIAN = {"loss": bad.FUNCTION, "params": bad.TREE, "batches": bad.BATCHES}
SOME = [value for value in bad.FITTING if value is not None]
DRAWN = {"scale": bad.POSITIVE, "fan": bad.CHOICE, "distribution": bad.CHOICE}

# name: the arguments of a call that works, and the values that each argument must refuse.
CALLS = {
    "apply": ({"params": PARAMS, "masks": MASKS}, {"params": bad.TREE, "masks": bad.FITTING}),
    "block": ({"rows": 2, "columns": 2}, dict.fromkeys(["rows", "columns"], bad.FROM_ONE_SIZE)),
    "by_path": (
        {"params": PARAMS, "sparsity": {"kernel": 0.5}},
        WHERE | {"params": bad.TREE, "sparsity": bad.REGEXES},
    ),
    "compact": (
        {"fn": lambda params: loss(params, BATCH), "params": PARAMS, "masks": MASKS},
        {
            "fn": bad.FUNCTION,
            "params": bad.TREE,
            "masks": bad.FITTING,
            "fold_constants": bad.FLAG,
            "zeros": bad.FLAG,
            "rebuild": [value for value in bad.FUNCTION if value is not None],
        },
    ),
    "constant": ({"fraction": 0.5}, {"fraction": bad.FRACTION}),
    "cosine": (
        {"fraction": 0.5, "stop": 9},
        {"fraction": bad.FRACTION, "stop": bad.FROM_ONE, "final": bad.FRACTION},
    ),
    "linear": (
        {"fraction": 0.5, "stop": 9},
        {"fraction": bad.FRACTION, "stop": bad.FROM_ONE, "final": bad.FRACTION},
    ),
    "cubic": (
        {"final": 0.5, "start": 0, "stop": 9},
        {"final": bad.FRACTION, "start": bad.COUNT, "stop": bad.FROM_ONE},
    ),
    "once": ({"at": 3}, {"at": bad.COUNT}),
    "periodic": ({"every": 2}, UPDATES),
    "default_prunable": ({"path": "kernel", "leaf": KERNEL}, {"path": [None, 3, 2.5, ("fc",)]}),
    "density": ({"masks": MASKS}, {"masks": bad.BOOLEANS} | WHERE),
    "sparsity": ({"masks": MASKS}, {"masks": bad.BOOLEANS} | WHERE),
    "overlap": ({"masks": MASKS, "other": MASKS}, {"masks": bad.BOOLEANS, "other": bad.FITTING}),
    "pack": ({"masks": MASKS}, {"masks": bad.BOOLEANS}),
    "unpack": (
        {"packed": jaxsparse.pack(MASKS), "params": PARAMS},
        {"packed": [*bad.SAME, MASKS], "params": bad.TREE},
    ),
    "drop_and_grow": (
        {"masks": MASKS, "drop_scores": PARAMS, "grow_scores": PARAMS, "fraction": 0.5},
        {
            "masks": bad.FITTING,
            "drop_scores": bad.TREE,
            "grow_scores": bad.SAME,
            "fraction": bad.FRACTION,
            "importance": [value for value in bad.SAME if value is not None],
            "scope": bad.CHOICE,
            "pattern": bad.PATTERN,
            "axes": bad.AXES,
        }
        | WHERE,
    ),
    "erdos_renyi": (
        {"params": PARAMS, "sparsity": 0.5},
        WHERE | {"params": bad.TREE, "sparsity": bad.ONE_SPARSITY, "axes": bad.FOUND_AXES},
    ),
    "erk": (
        {"params": PARAMS, "sparsity": 0.5},
        WHERE | {"params": bad.TREE, "sparsity": bad.ONE_SPARSITY, "axes": bad.FOUND_AXES},
    ),
    "uniform": (
        {"params": PARAMS, "sparsity": 0.5},
        WHERE | {"params": bad.TREE, "sparsity": bad.ONE_SPARSITY},
    ),
    "target_count": (
        {"size": 100, "sparsity": 0.5},
        {"size": bad.SIZE, "sparsity": bad.ONE_SPARSITY},
    ),
    "gradient": ({"grads": PARAMS}, {"grads": bad.TREE}),
    "magnitude": ({"params": PARAMS}, {"params": bad.TREE}),
    "saliency": (
        {"params": PARAMS, "grads": PARAMS},
        {"params": bad.TREE, "grads": bad.SAME},
    ),
    "random_scores": ({"key": 0, "params": PARAMS}, {"key": bad.KEY, "params": bad.TREE}),
    "snip": ({"loss": loss, "params": PARAMS, "batches": [BATCH[0]]}, HESSIAN),
    "grasp": ({"loss": loss, "params": PARAMS, "batches": [BATCH[0]]}, HESSIAN | WHERE),
    "synflow": (
        {"forward": loss, "params": PARAMS, "inputs": BATCH[0]},
        {"forward": bad.FUNCTION, "params": bad.TREE},
    ),
    "init": ({"tx": TX, "params": PARAMS}, {"tx": bad.TRANSFORMATION, "params": bad.TREE}),
    "get_masks": (
        {"opt_state": STATE, "params": PARAMS},
        {"opt_state": bad.STATE, "params": bad.TREE},
    ),
    "set_masks": (
        {"opt_state": STATE, "masks": MASKS},
        {
            "opt_state": bad.STATE,
            "masks": bad.FITTING,
            "tx": [value for value in bad.TRANSFORMATION if value is not None],
            "params": [value for value in bad.TREE if value is not None],
        },
    ),
    "take_over": (
        {"tx": TX, "dense_state": SGD.init(PARAMS), "params": PARAMS},
        {"tx": bad.TRANSFORMATION, "dense_state": bad.DENSE_STATE, "params": bad.TREE},
    ),
    "reset": (
        {"tx": TX, "opt_state": STATE, "params": PARAMS},
        {"tx": bad.TRANSFORMATION, "opt_state": bad.STATE, "params": bad.TREE},
    ),
    "metrics": ({"opt_state": STATE}, {"opt_state": bad.STATE} | WHERE),
    "summary": ({"params": PARAMS, "masks": MASKS}, {"params": bad.TREE, "masks": SOME} | WHERE),
    "n_m": ({"n": 2, "m": 4}, {"n": [*bad.FROM_ONE_SIZE, 4, 5], "m": [*bad.FROM_ONE_SIZE, 2]}),
    "prune": (
        {"scores": PARAMS, "sparsity": 0.5},
        SPREAD
        | {"scores": bad.TREE, "sparsity": bad.SPARSITY, "scope": bad.CHOICE, "within": SOME}
        | {"signed": bad.FLAG},
    ),
    "prune_by_magnitude": (
        {"params": PARAMS, "sparsity": 0.5},
        SPREAD
        | {"params": bad.TREE, "sparsity": bad.SPARSITY, "scope": bad.CHOICE, "within": SOME},
    ),
    "prune_iteratively": (
        {"score": jaxsparse.magnitude, "params": PARAMS, "sparsity": 0.5, "rounds": 2},
        TARGET
        | {
            "score": bad.FUNCTION,
            "params": bad.TREE,
            "sparsity": bad.ONE_SPARSITY,
            "rounds": bad.FROM_ONE_SIZE,
            "scope": bad.CHOICE,
        },
    ),
    "random_masks": (
        {"key": 0, "params": PARAMS, "sparsity": 0.5},
        SPREAD | {"key": bad.KEY, "params": bad.TREE, "sparsity": bad.SPARSITY},
    ),
    "redistribute": (
        {"total": 3, "shares": jnp.ones(2), "room": jnp.array([4, 4])},
        {
            "total": bad.SIZE,
            "shares": [None, "text", 3, jnp.ones((2, 2)), object()],
            "room": [None, "text", 3, jnp.ones(3), jnp.ones(2), jnp.array([4, -4]), object()],
        },
    ),
    "sparse_init": (
        {"key": 0, "params": PARAMS, "masks": MASKS},
        {
            "key": bad.KEY,
            "params": bad.TREE,
            "masks": bad.FITTING,
            "axes": bad.FOUND_AXES,
            "groups": [0, -1, 1.5, "2", True, None, {"[": 2}, {3: 2}, {"kernel": 0}, {"conv": 2}],
        }
        | DRAWN
        | WHERE,
    ),
    "sparse_initializer": (
        {"mask": MASK},
        {
            "mask": [None, "text", 3, True, {}, KERNEL, object()],
            "axes": bad.FOUND_AXES,
            "groups": [0, -1, 1.5, "2", True, None],
        }
        | DRAWN,
    ),
    "sparsify": (
        {"inner": SGD, "rule": jaxsparse.rigl_rule(0.5), "key": 0},
        {
            "inner": bad.INNER,
            "rule": [None, "rigl", 3, jaxsparse.rigl, {}, object()],
            "key": bad.KEY,
            "regrown_state": bad.CHOICE,
            "skip_update": bad.FLAG,
        },
    ),
    "fixed": (GIVEN, SPREAD | {n: WRAPPER[n] for n in ("inner", "sparsity", "key")}),
    "gradual": (
        GIVEN | {"start": 1, "stop": 9},
        WRAPPER | UPDATES | {"scope": bad.CHOICE},
    ),
    "rigl": (
        GIVEN,
        WRAPPER
        | UPDATES
        | {
            "drop_fraction": RATE,
            "accumulate": [v for v in bad.FROM_ONE_SIZE if v is not None],
            "min_salient": [*RATE, 0.0],
        },
    ),
    "sparse_evolution": (
        GIVEN,
        WRAPPER | UPDATES | {"drop_fraction": bad.FRACTION, "drop_by": bad.CHOICE},
    ),
    "sparse_momentum": (
        GIVEN,
        WRAPPER
        | UPDATES
        | {"drop_fraction": RATE, "momentum": [*bad.FRACTION, 1.0], "second_moment": [*RATE, 1.0]}
        | dict.fromkeys(["drop_by", "growth", "redistribution"], bad.CHOICE),
    ),
    "dynamic_reparameterization": (
        GIVEN,
        WRAPPER | UPDATES | {"threshold": bad.POSITIVE, "target": [*bad.FRACTION, 0.0]},
    ),
    "deep_rewiring": (
        GIVEN,
        WRAPPER | UPDATES | {"l1": bad.NOT_NEGATIVE, "noise": bad.NOT_NEGATIVE, "sign": bad.CHOICE},
    ),
}
