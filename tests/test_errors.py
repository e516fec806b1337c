"""Every wrong argument of a method raises in its factory, names itself and says what is allowed.

What only parameters can tell is told by the first call that sees them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse.selection import top_k_mask

SGD = optax.sgd(0.1)
PARAMS = {
    "fc": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.ones((6, 4))},
}
MASKS = jax.tree.map(lambda p: jnp.ones(p.shape, bool), PARAMS)
OTHER = {"fc": {"kernel": PARAMS["fc"]["kernel"]}, "tail": {"kernel": jnp.ones((6, 4))}}


def rigl(**options):
    return lambda: jaxsparse.rigl(SGD, **{"sparsity": 0.5, "key": 0} | options)


def remove(**options):
    return rigl(pattern=jaxsparse.fan_in, min_salient=0.3, **options)


def evolve(**options):
    return lambda: jaxsparse.sparse_evolution(SGD, **{"sparsity": 0.5, "key": 0} | options)


def momentum(**options):
    return lambda: jaxsparse.sparse_momentum(SGD, **{"sparsity": 0.5, "key": 0} | options)


def rewire(**options):
    return lambda: jaxsparse.deep_rewiring(SGD, **{"sparsity": 0.5, "key": 0} | options)


def gradual(**options):
    return lambda: jaxsparse.gradual(SGD, **{"sparsity": 0.5, "start": 0, "stop": 9} | options)


def init(tx, params=PARAMS):
    """What can only be told with parameters is told by `init`."""
    return lambda: tx().init(params)


def update(grads=PARAMS, params=PARAMS):
    def call():
        tx = jaxsparse.rigl(SGD, 0.5, key=0)
        return tx.update(grads, tx.init(PARAMS), params)

    return call


def sparsify(**options):
    rule = jaxsparse.rigl_rule(0.5)
    return lambda: jaxsparse.sparsify(**{"inner": SGD, "rule": rule, "key": 0} | options)


COUNTS = [
    ("0", 0, ValueError, "at least 1.*got 0"),
    ("-1", -1, ValueError, "at least 1.*got -1"),
    ("1.5", 1.5, TypeError, "integer.*got 1.5"),
    ("True", True, TypeError, "integer.*got True"),
    ("None", None, TypeError, "integer.*got None"),
]
NUMPY_COUNTS = [
    ("numpy 1.5", np.float64(1.5), TypeError, "integer.*1.5"),
    ("numpy 0", np.int64(0), ValueError, "at least 1.*got 0"),
]
SPARSITIES = [
    ("1.0", 1.0, ValueError, r"in \[0, 1\), got 1.0"),
    ("-0.1", -0.1, ValueError, r"in \[0, 1\), got -0.1"),
    ("nan", float("nan"), ValueError, r"in \[0, 1\), got nan"),
    ("90", 90, ValueError, r"in \[0, 1\), got 90"),
    ("text", "0.9", TypeError, r"number in \[0, 1\), got '0.9'"),
    ("True", True, TypeError, r"number in \[0, 1\), got True"),
    ("None", None, (TypeError, ValueError), "got (None|neither)"),
    ("numpy 1.0", np.float32(1), ValueError, r"in \[0, 1\), got 1.0"),
    ("by path", {"fc": 1.5}, ValueError, r"in \[0, 1\), got 1.5"),
]
FRACTIONS = [
    ("1.5", 1.5, ValueError, r"in \[0, 1\], got 1.5"),
    ("-0.1", -0.1, ValueError, r"in \[0, 1\], got -0.1"),
    ("nan", float("nan"), ValueError, r"in \[0, 1\], got nan"),
    ("text", "0.3", TypeError, r"in \[0, 1\].*got '0.3'"),
    ("numpy 1.5", np.float32(1.5), ValueError, r"in \[0, 1\], got 1.5"),
]
KEYS = [
    ("None", None, "got None.*no global default"),
    ("3.5", 3.5, "got 3.5"),
    ("True", True, "got True"),
    ("text", "0", "got '0'"),
    ("floats", jnp.ones(2), r"got an array float32\(2,\)"),
    ("two keys", jnp.zeros((2, 2), jnp.uint32), r"got an array uint32\(2, 2\)"),
    ("two typed keys", jax.random.split(jax.random.key(0)), r"single random key.*\(2,\)"),
]
METHODS = {"rigl": rigl, "evolve": evolve, "momentum": momentum}
FACTORIES = METHODS | {"gradual": gradual}

TABLE = [
    *(
        (f"{name} sparsity {label}", make(sparsity=value), error, f"sparsity.*{text}")
        for name, make in FACTORIES.items()
        for label, value, error, text in SPARSITIES
    ),
    *(
        (f"{name} every {label}", make(every=value), error, f"every.*{text}")
        for name, make in FACTORIES.items()
        for label, value, error, text in COUNTS
    ),
    *(  # `gradual` takes Python ints only.
        (f"{name} every {label}", make(every=value), error, f"every.*{text}")
        for name, make in METHODS.items()
        for label, value, error, text in NUMPY_COUNTS
    ),
    *(
        (f"{name} fraction {label}", make(drop_fraction=value), error, f"drop_fraction.*{text}")
        for name, make in METHODS.items()
        for label, value, error, text in FRACTIONS
    ),
    *(
        (f"{name} key {label}", make(key=value), TypeError, f"key.*{text}")
        for name, make in {"rigl": rigl, "evolve": evolve, "sparsify": sparsify}.items()
        for label, value, text in KEYS
    ),
    ("fixed without key", lambda: jaxsparse.fixed(SGD, 0.5), TypeError, "key.*None"),
    # When masks change.
    ("rigl start", rigl(start=-1), ValueError, "start.*at least 0.*got -1"),
    ("rigl start 2.0", rigl(start=2.0), TypeError, "start.*integer.*got 2.0"),
    ("rigl stop", rigl(every=100, stop=100), ValueError, "stop.*larger than start = 100, got 100"),
    ("evolve stop", evolve(start=9, stop=5), ValueError, "stop.*larger than start = 9, got 5"),
    ("gradual stop", gradual(start=9), ValueError, "stop.*larger than start = 9, got 9"),
    ("gradual start", gradual(start=-3), ValueError, "start.*at least 0.*got -3"),
    ("accumulate 0", rigl(accumulate=0), ValueError, r"accumulate.*\[1, every = 100\].*got 0"),
    (
        "accumulate 5",
        rigl(every=4, accumulate=5),
        ValueError,
        r"accumulate.*\[1, every = 4\].*got 5",
    ),
    ("min_salient 0", rigl(min_salient=0.0), ValueError, r"min_salient.*\(0, 1\].*got 0"),
    ("min_salient 2", rigl(min_salient=2.0), ValueError, r"min_salient.*\[0, 1\].*got 2.0"),
    ("min_salient", rigl(min_salient=0.3), ValueError, "min_salient.*fan_in.*unstructured"),
    ("keep_units alone", rigl(keep_units="fc"), ValueError, "keep_units needs min_salient.*'fc'"),
    ("keep_units 3", remove(keep_units=3), TypeError, "keep_units.*path regex.*got 3"),
    ("keep_units of ints", remove(keep_units=[3]), TypeError, r"keep_units.*got \[3\]"),
    ("keep_units regex", remove(keep_units="("), ValueError, r"keep_units: '\('.*regular"),
    ("periodic", lambda: jaxsparse.schedules.periodic(0), ValueError, "every.*at least 1.*got 0"),
    ("once", lambda: jaxsparse.schedules.once(-1), ValueError, "at must.*at least 0.*got -1"),
    (
        "cubic",
        lambda: jaxsparse.schedules.cubic(0.5, 5, 5),
        ValueError,
        "stop.*larger than start = 5, got 5",
    ),
    (
        "cubic final",
        lambda: jaxsparse.schedules.cubic(1.5, 0, 5),
        ValueError,
        r"final.*\[0, 1\], got 1.5",
    ),
    ("cosine", lambda: jaxsparse.schedules.cosine(0.3, 0), ValueError, "stop.*at least 1.*got 0"),
    (
        "linear",
        lambda: jaxsparse.schedules.linear(2.0, 9),
        ValueError,
        r"fraction.*\[0, 1\], got 2.0",
    ),
    (
        "constant",
        lambda: jaxsparse.schedules.constant(-1.0),
        ValueError,
        r"fraction.*\[0, 1\], got -1.0",
    ),
    # The choices of a method.
    ("sign", rewire(sign="positive"), ValueError, "sign.*fixed.*free.*got 'positive'"),
    ("sign number", rewire(sign=1), ValueError, "sign.*fixed.*free.*got 1"),
    ("growth", momentum(growth="magic"), ValueError, "growth.*momentum_neuron.*got 'magic'"),
    ("sharing", momentum(redistribution="all"), ValueError, "redistribution.*nonzero.*got 'all'"),
    ("momentum 1", momentum(momentum=1.0), ValueError, r"momentum.*\[0, 1\), got 1.0"),
    ("momentum text", momentum(momentum="0.9"), TypeError, "momentum.*got '0.9'"),
    ("regrown_state", rigl(regrown_state="old"), ValueError, "regrown_state.*reset.*got 'old'"),
    ("scope", gradual(scope="net"), ValueError, "scope.*layer.*global.*got 'net'"),
    ("min_alive 1.0", rigl(min_alive=1.0), TypeError, "min_alive.*int.*got 1.0"),
    ("prunable", rigl(prunable="kernel"), TypeError, "prunable.*function.*got 'kernel'"),
    ("no such argument", rigl(stopp=5), TypeError, "stopp"),
    ("inner", lambda: jaxsparse.rigl(0.1, 0.5, key=0), TypeError, "inner.*Optax.*got 0.1"),
    ("inner is a function", sparsify(inner=optax.sgd), TypeError, "inner.*Optax.*sgd"),
    ("rule", sparsify(rule="rigl"), TypeError, "rule.*jaxsparse.Rule.*'rigl'"),
    ("fixed: neither", lambda: jaxsparse.fixed(SGD, key=0), ValueError, "sparsity=.*masks="),
    (
        "fixed: both",
        lambda: jaxsparse.fixed(SGD, 0.5, masks=MASKS),
        ValueError,
        "sparsity=.*masks=",
    ),
    (
        "fixed: floats",
        lambda: jaxsparse.fixed(SGD, masks=PARAMS),
        TypeError,
        "masks at 'fc/bias'.*bool",
    ),
    # With parameters.
    (
        "keep_units: no layer",
        init(remove(keep_units=["fc", "tail"])),
        ValueError,
        "keep_units: 'tail'.*fc/kernel, head/kernel",
    ),
    ("keep_units: dense", init(remove(keep_units="bias")), ValueError, "keep_units: 'bias'"),
    (
        "rigl: no leaf",
        init(rigl(), {"bias": jnp.ones(3)}),
        ValueError,
        "prunable.*none of the 1.*bias",
    ),
    ("gradual n_m", gradual(pattern=jaxsparse.n_m(2, 4)), ValueError, "gradual.*2:4"),
    ("rows move", momentum(pattern=jaxsparse.fan_in), ValueError, 'fan_in.*redistribution="none"'),
    (
        "neurons of blocks",
        momentum(pattern=jaxsparse.block(2, 2), growth="momentum_neuron"),
        ValueError,
        "momentum_neuron.*unstructured",
    ),
    (
        "update, no params",
        update(params=None),
        ValueError,
        r"parameters.*update\(grads, opt_state, p",
    ),
    ("update, grads", update(grads=OTHER), ValueError, "grads.*first path.*'fc/bias'"),
    (
        "update, params",
        update(PARAMS | {"new": jnp.ones(6)}, PARAMS | {"new": jnp.ones(6)}),
        ValueError,
        "masks.*'new'",
    ),
    (
        "fixed masks",
        init(lambda: jaxsparse.fixed(SGD, masks=MASKS), OTHER),
        ValueError,
        "masks.*'fc/bias'",
    ),
    ("no state", lambda: jaxsparse.get_masks(SGD.init(PARAMS), PARAMS), ValueError, "opt_state"),
    (
        "metrics",
        lambda: jaxsparse.metrics(SGD.init(PARAMS)),
        ValueError,
        "opt_state.*no sparse state",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [pytest.param(*row[1:], id=row[0]) for row in TABLE]
)
def test_raises(call, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        call()


def test_checks_are_skipped_where_values_are_traced():
    """`inject_hyperparams` and `vmap` bring traced settings, which no Python code can check."""

    @jax.jit
    def run(fraction, key, k):
        rule = jaxsparse.rigl(SGD, 0.5, key=key, drop_fraction=fraction)
        return rule.init(PARAMS).masks, top_k_mask(jnp.arange(6.0), k)

    masks, mask = run(0.3, 0, 9)
    assert int(masks["fc"]["kernel"].sum()) == 12 and mask.all()
