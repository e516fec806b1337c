"""Units that pruning has cut off, counted one by one, and the report of collapsed layers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import Axes, analysis


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9, 7), Axes((0,), (1,))),
        ((7, 9), Axes((1,), (0,))),
        ((3, 2, 4, 5), Axes((2,), (3,))),
        ((6, 2, 4), Axes((0,), (1, 2))),
        ((3, 8, 6), Axes((1,), (2,), (0,))),
    ],
)
def test_empty_units_against_a_loop(shape, axes):
    mask = np.random.default_rng(0).random(shape) < 0.3
    for cut in (axes.inputs[0], axes.outputs[0]):
        np.moveaxis(mask, cut, 0)[1] = False
    found = jax.jit(lambda m: analysis.empty_units(m, axes=axes))({"w": jnp.asarray(mask)})["w"]
    for units, empty, count in (
        (axes.outputs, found.no_input, found.outputs),
        (axes.inputs, found.no_output, found.inputs),
    ):
        named = sorted(units + axes.stacked)
        alive = {
            index: mask[
                tuple(
                    index[named.index(a)] if a in named else slice(None) for a in range(mask.ndim)
                )
            ].any()
            for index in np.ndindex(*[shape[a] for a in named])
        }
        assert empty == len(alive) - sum(alive.values()) > 0 and count == len(alive)


def test_only_prunable_leaves_count():
    masks = {"fc": {"kernel": jnp.ones((4, 3), bool), "bias": jnp.zeros(3, bool), "none": None}}
    found = analysis.empty_units(masks)
    assert list(found) == ["fc/kernel"] and found["fc/kernel"].no_input == 0
    with pytest.raises(ValueError, match="axes: cannot tell inputs from outputs of 'fc/w'"):
        analysis.empty_units({"fc": {"w": jnp.ones((4, 3), bool)}})


def uneven():
    """Scores of which a global choice takes none in the layer `small`."""
    return {
        "large": {"kernel": jnp.arange(1.0, 101.0).reshape(10, 10)},
        "small": {"kernel": jnp.full((5, 4), 0.5)},
    }


@pytest.mark.parametrize(("min_alive", "alive"), [(0, 0), (1, 1), (3, 3)])
def test_global_pruning_names_the_layer_that_collapses(min_alive, alive):
    with pytest.warns(
        UserWarning, match=f"layer collapse: {alive} of 20 weights of 'small/kernel'"
    ):
        masks = jaxsparse.prune(uneven(), 0.9, scope="global", min_alive=min_alive)
    assert int(masks["small"]["kernel"].sum()) == alive
    with pytest.warns(
        UserWarning, match=f"layer collapse: {alive} of 20 weights of 'small/kernel'"
    ):
        jaxsparse.prune_iteratively(lambda p: p, uneven(), 0.9, rounds=3, min_alive=min_alive)


def test_no_layer_collapses_without_a_report():
    with pytest.raises(ValueError, match="layer collapse: 0 of 20 weights of 'small/kernel'"):
        jaxsparse.prune(uneven(), 0.9, scope="global", min_alive="raise")
    with pytest.raises(ValueError, match="layer collapse: 0 of 20 weights of 'small/kernel'"):
        jaxsparse.prune_iteratively(lambda p: p, uneven(), 0.9, rounds=3, min_alive="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxsparse.prune(uneven(), 0.1, scope="global", min_alive="raise")
        jaxsparse.prune(uneven(), 0.9)
        jax.jit(lambda s: jaxsparse.prune(s, 0.9, scope="global"))(uneven())
