"""Values that no function should take, by what an argument stands for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse

PARAMS = {
    "fc": {"kernel": jnp.linspace(0.1, 1, 24).reshape(4, 6), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.linspace(1, 2, 24).reshape(6, 4)},
}
MASKS = jax.tree.map(lambda p: (jnp.arange(p.size) % 2 == 0).reshape(p.shape), PARAMS)
MASKS["fc"]["bias"] = jnp.ones(6, bool)
LOGITS = jnp.ones((2, 3, 4))

_STRANGE = ["text", b"bytes", object(), math.inf]
_OTHER = {"fc": {"kernel": PARAMS["fc"]["kernel"]}, "tail": {"kernel": jnp.ones((6, 4))}}
_RESHAPED = PARAMS | {"head": {"kernel": jnp.ones((4, 6))}}
_TREES = [None, "text", b"bytes", object(), 3, 2.5, True]
_NUMBERS = [math.nan, "1", None, True, [0.5], object(), 1j]


def _like(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


TREE = _TREES
SAME = [*_TREES, _OTHER, _RESHAPED]  # of the structure of another argument
BOOLEANS = [
    *_TREES,
    PARAMS,
    _like(PARAMS, jnp.int32),
    _like(PARAMS, jnp.bfloat16),
    jax.tree.map(lambda m: jnp.packbits(m, axis=-1), MASKS),
    jax.tree.map(lambda m: 1, MASKS),
]
FITTING = [*BOOLEANS, _like(_OTHER, bool), _like(_RESHAPED, bool)]
KEY = [None, 2.5, "0", True, jnp.ones(2), jnp.zeros((2, 2), jnp.uint32), 2**70, -(2**70), object()]
FRACTION = [*_NUMBERS, 1.5, -0.1, math.inf, -math.inf, np.float32(1.5), np.ones(2)]
SPARSITY = [*FRACTION, 1.0, 90, {"[": 0.5}, {3: 0.5}, {"kernel": "x"}, {"kernel": 1.5}]
ONE_SPARSITY = [*FRACTION, 1.0, 90, {"kernel": 0.5}]
COUNT = [*_NUMBERS, -1, 1.5, 2.0, -(2**31), 2**31, 2**40, math.inf, np.float64(1.5)]
FROM_ONE = [*COUNT, 0]
SIZE = [*_NUMBERS, -1, 1.5, math.inf, "2"]
FROM_ONE_SIZE = [*SIZE, 0]
POSITIVE = [*_NUMBERS, 0, 0.0, -1.0, math.inf]
NOT_NEGATIVE = [*_NUMBERS, -1.0, -math.inf, math.inf]
CHOICE = ["magic", "", 3, None, True, ["layer"], object()]
FUNCTION = [None, "text", 3, 2.5, True, {}, object()]
FILTER = ["kernel", 3, 2.5, True, ["kernel"], {"kernel": True}, object()]
PATTERN = ["2:4", None, 3, True, ("unstructured",), object(), {}]
AXES = [
    "magic",
    3,
    2.5,
    True,
    [0, 1],
    object(),
    {"[": "flax"},
    {3: "flax"},
    {"kernel": "magic"},
    {"kernel": 3},
    (0, 1),
    jaxsparse.Axes(0, 1),
    jaxsparse.Axes((0.5,), (1,)),
    jaxsparse.Axes("0", "1"),
]
FOUND_AXES = [*AXES, jaxsparse.Axes((0,), (7,)), jaxsparse.Axes((0,), (0,)), jaxsparse.Axes((), ())]
DISTRIBUTION = ["erk", 3, 2.5, True, [0.5], object(), _OTHER, {"fc": 0.5}]
MIN_ALIVE = [-1, 1.5, "all", True, math.nan, [1], object()]
INNER = [None, 0.1, "sgd", optax.sgd, {}, object(), (1, 2)]
TRANSFORMATION = [None, 0.1, "sgd", optax.sgd, PARAMS, object(), (1, 2)]
BATCHES = [None, "text", 3, 2.5, [], object()]
STATE = [None, "text", 3, {}, (), object(), PARAMS, optax.sgd(0.1).init(PARAMS)]
DENSE_STATE = [None, "text", 3, {}, (), object(), PARAMS]
REGEXES = [None, 0.5, "kernel", {}, {"[": 0.5}, {3: 0.5}, {"kernel": "x"}, {"conv": 0.5}, [0.5]]
FLAG = ["yes", 3, None, 2.5, object()]
FLOATS = [*_STRANGE, None, True, {}, MASKS["fc"]["kernel"], jnp.arange(3)]
