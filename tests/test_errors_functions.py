"""Wrong arguments of the pure functions: the message names the argument, its value and the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import Axes, analysis
from jaxsparse.axes import leaf_axes
from jaxsparse.selection import global_top_k_masks, kth_largest, top_k_mask

X = jnp.arange(6.0)
PARAMS = {
    "fc": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.ones((6, 4))},
}
MASKS = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
OTHER = {"fc": {"kernel": PARAMS["fc"]["kernel"]}, "tail": {"kernel": jnp.ones((6, 4))}}
RESHAPED = PARAMS | {"head": {"kernel": jnp.ones((4, 6))}}
NUMBERS = jax.tree.map(lambda p: 3, PARAMS)


def prune(**options):
    return lambda: jaxsparse.prune(PARAMS, **{"sparsity": 0.5} | options)


def sparse_init(**options):
    given = {"key": 0, "params": PARAMS, "masks": MASKS}
    return lambda: jaxsparse.sparse_init(**given | options)


def axes(spec, path="fc/kernel", shape=(4, 6)):
    return lambda: leaf_axes(spec, path, jnp.ones(shape))


TABLE = [
    ("prune sparsity", prune(sparsity=1.0), ValueError, r"sparsity.*\[0, 1\), got 1.0"),
    ("prune sparsity text", prune(sparsity="0.9"), TypeError, "sparsity.*got '0.9'"),
    ("random_masks key", lambda: jaxsparse.random_masks(None, PARAMS, 0.5), TypeError, "key.*None"),
    ("sparse_init key", sparse_init(key=2.5), TypeError, "key.*got 2.5"),
    ("prune scope", prune(scope="net"), ValueError, "scope.*layer.*global.*got 'net'"),
    ("min_alive", prune(min_alive=-1), ValueError, "min_alive.*at least 0.*got -1"),
    # Which leaves, and how much of each.
    (
        "no leaf",
        prune(prunable=lambda p, leaf: False),
        ValueError,
        "prunable.*none of the 3.*fc/bias",
    ),
    ("no such path", prune(sparsity={"conv": 0.5}), ValueError, "sparsity: 'conv'.*fc/kernel"),
    ("no path at all", prune(sparsity={}), ValueError, "sparsity"),
    ("shadowed path", prune(sparsity={".*": 0.5, "fc": 0.9}), ValueError, "sparsity: 'fc'"),
    (
        "global by path",
        prune(sparsity={"fc": 0.5}, scope="global"),
        ValueError,
        "global.*one sparsity",
    ),
    (
        "global erk",
        prune(scope="global", distribution=jaxsparse.erk),
        ValueError,
        "distribution.*global",
    ),
    (
        "distribution tree",
        prune(distribution=OTHER),
        ValueError,
        "distribution.*first path.*'fc/bias'",
    ),
    (
        "distribution value",
        prune(distribution=NUMBERS),
        ValueError,
        "distribution at 'fc/kernel'.*got 3",
    ),
    ("distribution name", prune(distribution="erk"), (TypeError, ValueError), "distribution.*erk"),
    (
        "uniform",
        lambda: jaxsparse.distributions.uniform(PARAMS, 1.0),
        ValueError,
        "sparsity.*got 1.0",
    ),
    ("erk", lambda: jaxsparse.erk(PARAMS, -0.5), ValueError, "sparsity.*got -0.5"),
    (
        "by_path",
        lambda: jaxsparse.distributions.by_path(PARAMS, {"fc": 2}),
        ValueError,
        "sparsity.*got 2",
    ),
    # Patterns and axes.
    ("n_m 4:4", lambda: jaxsparse.n_m(4, 4), ValueError, "n must be smaller than m, got 4:4"),
    ("n_m 0:4", lambda: jaxsparse.n_m(0, 4), ValueError, "n must be at least 1, got 0"),
    ("n_m 2:4.0", lambda: jaxsparse.n_m(2, 4.0), TypeError, "m must be an int, got 4.0"),
    ("block 0", lambda: jaxsparse.block(0, 4), ValueError, "rows must be at least 1, got 0"),
    ("block True", lambda: jaxsparse.block(4, True), TypeError, "columns must be an int, got True"),
    ("pattern", prune(pattern="2:4"), TypeError, "pattern.*n_m.*got '2:4'"),
    (
        "pattern uncalled",
        prune(pattern=jaxsparse.n_m),
        TypeError,
        r"pattern.*n_m\(n, m\).*function",
    ),
    (
        "n_m divides",
        prune(pattern=jaxsparse.n_m(2, 4)),
        ValueError,
        r"2:4: 'head/kernel'.*6 inputs",
    ),
    (
        "n_m sparsity",
        prune(pattern=jaxsparse.n_m(1, 2), sparsity=0.9),
        ValueError,
        "0.9 at 'fc.*=0.5",
    ),
    (
        "block divides",
        prune(pattern=jaxsparse.block(4, 4)),
        ValueError,
        r"block:4x4: 'fc.*6 outputs",
    ),
    ("global rows", prune(pattern=jaxsparse.fan_in, scope="global"), ValueError, "global.*fan_in"),
    (
        "global sizes",
        prune(pattern=jaxsparse.channel, scope="global"),
        ValueError,
        r"global.*\[4, 6\]",
    ),
    ("no axes", axes(None, "fc/w"), ValueError, r"axes.*'fc/w' with shape \(4, 6\).*axes="),
    ("three axes", axes(None, shape=(2, 4, 6)), ValueError, r"axes.*'fc/kernel'.*\(2, 4, 6\)"),
    ("preset", axes("keras"), ValueError, "axes.*unknown preset 'keras'.*flax"),
    ("preset too long", axes("qkv"), ValueError, "axes.*'qkv'.*'fc/kernel' with 2 axes"),
    ("axis 7", axes(Axes((0,), (7,))), ValueError, r"axes.*\(7,\).*'fc/kernel'"),
    ("axis twice", axes(Axes((0,), (0,))), ValueError, "axes.*does not fit 'fc/kernel'"),
    ("no inputs", axes(Axes((), (1,))), ValueError, "axes.*at least one input"),
    ("axes number", axes(3), TypeError, "axes.*got 3"),
    ("axes of ints", axes(Axes(0, 1)), TypeError, r"axes.*inputs=0"),
    ("erk axes", lambda: jaxsparse.erk({"w": jnp.ones((2, 3, 4))}, 0.5), ValueError, "axes.*'w'"),
    # Trees that do not fit.
    ("apply", lambda: jaxsparse.apply(PARAMS, OTHER), ValueError, "masks.*first path.*'fc/bias'"),
    (
        "apply shape",
        lambda: jaxsparse.apply(PARAMS, RESHAPED),
        ValueError,
        r"'head/kernel'.*\(4, 6\)",
    ),
    ("apply numbers", lambda: jaxsparse.apply(PARAMS, NUMBERS), ValueError, "'fc/bias'.*got 3"),
    (
        "overlap",
        lambda: jaxsparse.overlap(MASKS, OTHER),
        ValueError,
        "other.*first path.*'fc/bias'",
    ),
    ("unpack", lambda: jaxsparse.unpack(MASKS, PARAMS), ValueError, r"packed at 'fc/bias'.*\(6,\)"),
    ("within", prune(within=OTHER), ValueError, "within.*first path.*'fc/bias'"),
    ("saliency", lambda: jaxsparse.saliency(PARAMS, OTHER), ValueError, "grads.*first path"),
    ("sparse_init", sparse_init(masks=RESHAPED), ValueError, r"masks at 'head/kernel'.*\(4, 6\)"),
    (
        "drop_and_grow",
        lambda: jaxsparse.drop_and_grow(MASKS, PARAMS, OTHER, 0.5),
        ValueError,
        "grow_scores.*first path.*'fc/bias'",
    ),
    (
        "drop_and_grow fraction",
        lambda: jaxsparse.drop_and_grow(MASKS, PARAMS, PARAMS, 1.5),
        ValueError,
        r"fraction.*\[0, 1\], got 1.5",
    ),
    # Initialization, scores and rounds.
    ("fan", sparse_init(fan="fanin"), ValueError, "fan must.*fan_in.*got 'fanin'"),
    ("init numbers", sparse_init(distribution="he"), ValueError, "distribution.*normal.*got 'he'"),
    ("scale", sparse_init(scale=0.0), ValueError, "scale.*above 0.*got 0.0"),
    ("batches", lambda: jaxsparse.snip(lambda p, b: 0.0, PARAMS, []), ValueError, "batches.*none"),
    (
        "rounds",
        lambda: jaxsparse.prune_iteratively(jaxsparse.magnitude, PARAMS, 0.5, rounds=0),
        ValueError,
        "rounds.*at least 1, got 0",
    ),
    (
        "rounds 2.0",
        lambda: jaxsparse.prune_iteratively(jaxsparse.magnitude, PARAMS, 0.5, rounds=2.0),
        TypeError,
        "rounds.*int.*got 2.0",
    ),
    # Selection.
    ("k too large", lambda: top_k_mask(X, 7), ValueError, r"k must be in \[0, 6\], got 7"),
    ("k negative", lambda: top_k_mask(X, -1), ValueError, r"k must be in \[0, 6\], got -1"),
    (
        "k of rows",
        lambda: top_k_mask(X[None], 2, axis=0),
        ValueError,
        r"k must be in \[0, 1\], got 2",
    ),
    ("k of numpy", lambda: top_k_mask(X, np.int32(7)), ValueError, r"k must be in \[0, 6\], got 7"),
    ("k 2.5", lambda: top_k_mask(X, 2.5), TypeError, "k must.*2.5"),
    (
        "k in all",
        lambda: global_top_k_masks([X, X], 13),
        ValueError,
        r"k must be in \[0, 12\], got 13",
    ),
    ("k-th 0", lambda: kth_largest(X, 0), ValueError, r"k must be in \[1, 6\], got 0"),
    ("k-th of none", lambda: kth_largest(X[:0], 1), ValueError, "scores.*empty"),
    ("scores", lambda: top_k_mask(jnp.arange(6), 2), TypeError, "scores.*floating.*int32"),
    ("all scores", lambda: global_top_k_masks([X, X > 2], 2), TypeError, "scores.*floating.*bool"),
    ("k-th scores", lambda: kth_largest(X > 2, 2), TypeError, "scores.*floating.*bool"),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [pytest.param(*row[1:], id=row[0]) for row in TABLE]
)
def test_raises(call, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        call()


def test_flops_and_summaries():
    with pytest.raises(ValueError, match="method must be one of .*got 'magic'"):
        analysis.training_flops(1.0, 0.5, "magic")
    with pytest.raises(ValueError, match="masks.*first path that differs is 'fc/bias'"):
        jaxsparse.summary(PARAMS, OTHER)
