"""Distributions against the published formulas, solved by loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from jaxsparse import Axes
from jaxsparse.axes import leaf_axes
from tests import reference

LENET = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
CONV = {
    "conv1": (3, 3, 3, 16),
    "conv2": (3, 3, 16, 32),
    "conv3": (3, 3, 32, 64),
    "shortcut": (1, 1, 16, 64),
    "fc": (64, 10),
}


def net(shapes, last="kernel"):
    """Shapes are all that distributions look at."""
    return {
        name: {
            last: jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[-1:], jnp.float32),
        }
        for name, shape in shapes.items()
    }


def raw_density(shape, kernel):
    """`(n_in + n_out) / (n_in * n_out)`, with w and h where the kernel counts."""
    *window, n_in, n_out = shape
    if not kernel:
        return (n_in + n_out) / (n_in * n_out)
    return (n_in + n_out + sum(window)) / (n_in * n_out * math.prod(window))


def total_kept(found, shapes):
    return sum(reference.target_count(math.prod(s), found[n]["kernel"]) for n, s in shapes.items())


def test_uniform():
    found = jaxsparse.distributions.uniform(net(LENET), 0.9)
    assert found == {name: {"kernel": 0.9, "bias": 0.0} for name in LENET}
    first_dense = jaxsparse.distributions.uniform(
        net(LENET), 0.9, prunable=lambda path, leaf: "fc2/k" in path
    )
    assert [layer["kernel"] for layer in first_dense.values()] == [0.0, 0.9, 0.0]


@pytest.mark.parametrize("shapes", [LENET, CONV], ids=["dense", "convolutions"])
@pytest.mark.parametrize("distribution", ["erdos_renyi", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 0.9, 0.98])
def test_erdos_renyi_and_erk(shapes, distribution, sparsity):
    """The formula, the layers that fill up, and the number of weights that are kept."""
    found = getattr(jaxsparse.distributions, distribution)(net(shapes), sparsity)
    raw = [raw_density(shape, distribution == "erk") for shape in shapes.values()]
    sizes = [math.prod(shape) for shape in shapes.values()]
    expected = reference.erdos_renyi_densities(raw, sizes, sparsity)
    densities = [1 - found[name]["kernel"] for name in shapes]
    assert all(type(x) is float and 0 <= x < 1 for x in jax.tree.leaves(found))
    assert np.allclose(densities, expected, rtol=1e-12, atol=1e-12)
    assert all(layer["bias"] == 0.0 for layer in found.values())
    # Rounding each layer to whole weights moves the total by half a weight a layer at most.
    wanted = (1 - sparsity) * sum(sizes)
    assert abs(total_kept(found, shapes) - wanted) <= len(shapes) / 2 + 1e-6


def test_layers_fill_up_in_several_rounds():
    """The smallest fill up first; only with them dense does `d` overflow as well."""
    shapes = {"a": (100, 100), "b": (20, 20), "c": (4, 4), "d": (50, 50)}
    raw = {name: raw_density(shape, False) for name, shape in shapes.items()}
    budget = 0.65 * 12_916
    factor = budget / sum(raw[name] * math.prod(shape) for name, shape in shapes.items())
    assert [name for name in shapes if factor * raw[name] > 1] == ["b", "c"]
    found = jaxsparse.erdos_renyi(net(shapes), 0.35)
    assert [name for name in shapes if found[name]["kernel"] == 0.0] == ["b", "c", "d"]
    assert found["a"]["kernel"] == pytest.approx(1 - (budget - 2_916) / 10_000)


def test_density_ratios_follow_the_formula():
    found = jaxsparse.erk(net(CONV), 0.95)
    ratios = {
        (1 - found[name]["kernel"]) / raw_density(shape, True)
        for name, shape in CONV.items()
        if found[name]["kernel"] > 0
    }
    assert max(ratios) == pytest.approx(min(ratios))
    er = jaxsparse.erdos_renyi(net(CONV), 0.95)
    assert er["conv3"]["kernel"] != pytest.approx(found["conv3"]["kernel"], abs=1e-3)


def test_axes_give_the_same_densities_in_any_layout():
    flax = jaxsparse.erk(net(CONV), 0.9)
    torch = {n: (*s[:-3:-1], *s[:-2]) for n, s in CONV.items()}  # (out, in, window...)
    for options in ({}, {"axes": "equinox"}, {"axes": {"conv": "torch", ".*": Axes((1,), (0,))}}):
        last = "weight" if not options else "w"
        found = jaxsparse.erk(net(torch, last), 0.9, **options)
        for name in CONV:
            assert found[name][last] == pytest.approx(flax[name]["kernel"])


def test_stacked_layers_count_as_one_of_their_layers():
    stacked = {"layers": {"kernel": jax.ShapeDtypeStruct((5, 30, 20), jnp.float32)}}
    stacked["head"] = {"kernel": jax.ShapeDtypeStruct((20, 4), jnp.float32)}
    axes = {"layers": "flax_stacked", "head": "flax"}
    for distribution in (jaxsparse.erk, jaxsparse.erdos_renyi):
        found = distribution(stacked, 0.8, axes=axes)
        expected = reference.erdos_renyi_densities([50 / 600, 24 / 80], [3_000, 80], 0.8)
        densities = [1 - found[name]["kernel"] for name in ("layers", "head")]
        assert np.allclose(densities, expected)


@pytest.mark.parametrize(
    ("axes", "path", "shape", "expected"),
    [
        (None, "fc/kernel", (4, 3), Axes((0,), (1,))),
        (None, "conv/kernel", (5, 5, 4, 3), Axes((2,), (3,))),
        (None, "fc/weight", (3, 4), Axes((1,), (0,))),
        (None, "conv/weight", (3, 4, 5, 5), Axes((1,), (0,))),
        ("flax", "w", (5, 4, 3), Axes((1,), (2,))),
        ("torch", "w", (3, 4, 5), Axes((1,), (0,))),
        ("flax_stacked", "w", (7, 4, 3), Axes((1,), (2,), (0,))),
        ("equinox_stacked", "w", (7, 3, 4), Axes((2,), (1,), (0,))),
        ("qkv", "w", (8, 2, 4), Axes((0,), (1, 2))),
        ("attention_out", "w", (2, 4, 8), Axes((0, 1), (2,))),
        (Axes((-1,), (-2,)), "w", (3, 4), Axes((1,), (0,))),
        ({"^q": "qkv", ".*": "flax"}, "q", (8, 2, 4), Axes((0,), (1, 2))),
        ({"^q": "qkv", ".*": "flax"}, "w", (8, 2), Axes((0,), (1,))),
        ({"^q": "qkv"}, "fc/kernel", (8, 2), Axes((0,), (1,))),
        (lambda path, leaf: Axes((0,), (len(leaf.shape) - 1,)), "w", (8, 2), Axes((0,), (1,))),
    ],
)
def test_axes(axes, path, shape, expected):
    assert leaf_axes(axes, path, jax.ShapeDtypeStruct(shape, jnp.float32)) == expected


def test_by_path_takes_the_first_match():
    found = jaxsparse.distributions.by_path(net(LENET), {"fc1": 0.9, "fc[12]": 0.5})
    assert [layer["kernel"] for layer in found.values()] == [0.9, 0.5, 0.0]
    assert all(layer["bias"] == 0.0 for layer in found.values())


@pytest.mark.parametrize("form", ["tree", "function", "function with keywords", "mapping"])
def test_a_distribution_of_your_own(form):
    """By whichever way the sparsities come in, `prune` keeps those counts."""
    wanted = {"a": 0.25, "b": 0.75}
    scores = {name: {"kernel": jnp.arange(16.0).reshape(4, 4)} for name in wanted}
    tree = {name: {"kernel": sparsity} for name, sparsity in wanted.items()}

    def plain(params, sparsity):
        assert sparsity == 0.5
        return tree

    def with_keywords(params, sparsity, *, prunable, axes):
        assert axes == "flax" and prunable("a/kernel", None)
        return tree

    options = {
        "tree": {"distribution": tree},
        "function": {"distribution": plain},
        "function with keywords": {
            "distribution": with_keywords,
            "prunable": lambda path, leaf: True,
            "axes": "flax",
        },
        "mapping": {},
    }[form]
    masks = jaxsparse.prune(scores, wanted if form == "mapping" else 0.5, **options)
    assert [int(masks[name]["kernel"].sum()) for name in wanted] == [12, 4]
