"""Every exported function, every argument, every value that it must refuse.

A refusal is a `ValueError` or `TypeError` whose text names the argument.
"""

import inspect
import re
import warnings

import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from jaxsparse import analysis, distributions, lottery, schedules, scores, selection
from tests.bad_calls import CALLS, GIVEN
from tests.bad_calls_rooms import ANALYSIS, LOTTERY, SELECTION
from tests.bad_values import PARAMS

FLAT = set(jaxsparse.__all__)
NAMED = (distributions, schedules, scores)  # what stands in both is called once
TABLES = [
    (jaxsparse, {name: CALLS[name] for name in CALLS if name in FLAT}),
    *((room, {name: CALLS[name] for name in room.__all__ if name not in FLAT}) for room in NAMED),
    (analysis, ANALYSIS),
    (lottery, LOTTERY),
    (selection, SELECTION),
]
EXPORTED = [
    pytest.param(room, name, table, id=f"{room.__name__}.{name}")
    for room, table in TABLES
    for name in table
]
METHODS = [name for name, (given, _) in CALLS.items() if given.keys() >= GIVEN.keys()]


def call(room, name, given):
    """The call; what only parameters can tell is told by the first call that sees them."""
    made = getattr(room, name)(**given)
    if isinstance(made, optax.GradientTransformation):
        made.init(PARAMS)


def refusals(table, name):
    given, refused = table[name]
    for argument, values in refused.items():
        for value in values:
            yield argument, value, given | {argument: value}


def test_the_tables_hold_every_exported_function():
    rules = {f"{name}_rule" for name in METHODS}  # their methods call them with the same arguments
    for room, table in TABLES:
        exported = {name for name in room.__all__ if inspect.isfunction(getattr(room, name))}
        assert exported - rules - (FLAT if room in NAMED else set()) == set(table), room.__name__
    assert sum(1 for _, table in TABLES for name in table for _ in refusals(table, name)) >= 1000


@pytest.mark.parametrize(("room", "name", "table"), EXPORTED)
def test_refuses(room, name, table):
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(room, name, table[name][0])
        for argument, value, given in refusals(table, name):
            try:
                call(room, name, given)
            except (ValueError, TypeError) as error:
                if re.search(rf"\b{argument}\b", str(error)):
                    continue
                outcome = f"{type(error).__name__}: {str(error)[:150]}"
            except Exception as error:
                outcome = f"{type(error).__name__}: {str(error)[:150]}"
            else:
                outcome = "accepted"
            wrong.append(f"{argument}={str(value)[:60]!r}: {outcome}")
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_names_the_function_and_the_nearest(name):
    given, _ = CALLS[name]
    for wrong, near in (("sparsty", "sparsity"), ("min_aliv", "min_alive"), ("magic", "it takes")):
        with pytest.raises(TypeError, match=rf"{name}\(\).*{wrong}.*{near}"):
            getattr(jaxsparse, name)(**given, **{wrong: 1})
    rest = {key: value for key, value in given.items() if key not in ("inner", "key")}
    with pytest.raises(TypeError, match=rf"{name}_rule\(\).*prunabel.*prunable"):
        getattr(jaxsparse, f"{name}_rule")(**rest, prunabel=None)


WRAPPING = ("inner", "key", "skip_update", "storage", "mask_storage")
"""What `sparsify` asks for, not the rule."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_and_its_rule_have_the_same_defaults(name):
    method, rule = getattr(jaxsparse, name), getattr(jaxsparse, f"{name}_rule")
    own = {k: v.default for k, v in inspect.signature(rule).parameters.items()}
    whole = {k: v.default for k, v in inspect.signature(method).parameters.items()}
    assert own == {k: v for k, v in whole.items() if k not in WRAPPING}


@pytest.mark.parametrize("name", ["sparse_momentum", "dynamic_reparameterization"])
def test_nothing_to_prune_is_dense_training(name):
    tx = getattr(jaxsparse, name)(optax.sgd(0.1), 0.0, key=0, every=1)
    params, state = jaxsparse.init(tx, PARAMS)
    for _ in range(3):
        updates, state = tx.update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
    expected = PARAMS["fc"]["kernel"] * (1 - 0.1 * 3)
    assert jnp.allclose(params["fc"]["kernel"], expected)
