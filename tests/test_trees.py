"""Walking trees: names, filters, applying and measuring masks, packing, keys, any container."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse
from jaxsparse import prng, trees
from jaxsparse.recognition import why_dense
from tests import reference

SHAPE = (6, 9)


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    first: Layer
    head: dict


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    kernels = jnp.asarray(rng.standard_normal((2, *SHAPE)), jnp.float32)
    return Layer(kernels[0], jnp.ones(9)), {"kernel": kernels[1], "bias": jnp.ones(9)}


def equinox_model():
    """Functions are leaves of it too."""
    return eqx.nn.MLP(9, 6, 9, depth=0, key=jax.random.key(0), activation=jax.nn.relu)


def flax_state():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.head = nnx.Linear(6, 9, rngs=rngs), nnx.Linear(6, 9, rngs=rngs)

    return nnx.state(Model(nnx.Rngs(0)), nnx.Param)


CONTAINERS = {
    "dict": lambda: dict(zip(("first", "head"), arrays(), strict=True)),
    "tuple": arrays,
    "list": lambda: list(arrays()),
    "dataclass": lambda: Net(*arrays()),
    "nnx.State": flax_state,
    "equinox model": equinox_model,
    "None": lambda: {"a": None, "b": arrays()[0]},
    "MaskedNode": lambda: {"a": optax.MaskedNode(), "b": arrays()[1]},
    "one array": lambda: arrays()[0].kernel,
    "placeholders": lambda: {"a": optax.MaskedNode(), "b": None, "c": ()},
    "other types": lambda: {"kernel": arrays()[0].kernel, "step": jnp.int32(3), "name": "net"},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_any_container(container):
    """The pure functions keep structure and leaves, and hit exact counts, whatever holds them."""
    params = CONTAINERS[container]()
    leaves, treedef = jax.tree.flatten(params)
    masks = jaxsparse.random_masks(0, params, 0.7)
    sparse = jaxsparse.apply(params, masks)
    again = jaxsparse.prune(jaxsparse.magnitude(sparse), 0.7, within=masks)
    moved = jaxsparse.drop_and_grow(masks, jaxsparse.magnitude(sparse), sparse, 0.3)
    drawn = jaxsparse.sparse_init(1, params, masks, axes="flax")
    unpacked = jaxsparse.unpack(jaxsparse.pack(masks), params)
    for tree in (masks, sparse, again, moved, drawn, unpacked):
        assert jax.tree.structure(tree) == treedef
    found = [jax.tree.leaves(t) for t in (masks, sparse, again, moved, drawn, unpacked)]
    for p, mask, kept, survivors, other, new, back in zip(leaves, *found, strict=True):
        if not trees.is_array(p):
            assert mask is p and kept is p and new is p
            continue
        assert mask.dtype == bool and mask.shape == p.shape and kept.dtype == p.dtype
        assert int(mask.sum()) == (round(0.3 * p.size) if p.ndim == 2 else p.size)
        assert np.array_equal(kept, np.where(mask, p, 0))
        assert np.array_equal(survivors, mask) and np.array_equal(back, mask)
        assert int(other.sum()) == int(mask.sum())
        assert (new is p) if p.ndim < 2 else bool((jnp.asarray(new)[~mask] == 0).all())


def test_names_are_paths():
    tree = {"fc": [Layer(1.0, 2.0)], "net": Net(Layer(3.0, None), {"kernel": 4.0})}
    found = [trees.name(path) for path, _ in jax.tree.leaves_with_path(tree)]
    assert found == ["fc/0/kernel", "fc/0/bias", "net/first/kernel", "net/head/kernel"]
    states = jax.tree.leaves_with_path(flax_state())
    names = {trees.name(path) for path, _ in states}
    assert names == {"first/kernel", "first/bias", "head/kernel", "head/bias"}


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "expected"),
    [
        ("fc/kernel", (3, 4), "float32", True),
        ("fc/weight", (3, 4), "bfloat16", True),
        ("fc/kernel", (4,), "float32", False),
        ("fc/kernel", (4, 1), "float32", False),
        ("conv/kernel", (1, 1, 3, 4), "float16", True),
        ("fc/bias", (3, 4), "float32", False),
        ("norm/scale", (3, 4), "float32", False),
        ("tokens/embedding", (3, 4), "float32", False),
        ("embedding/kernel", (3, 4), "float32", True),
        ("fc/kernel", (3, 4), "int32", False),
        ("fc/kernel", (3, 4), "complex64", False),
        ("fc/kernel", (), "float32", False),
    ],
)
def test_default_prunable(path, shape, dtype, expected):
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    assert jaxsparse.default_prunable(path, leaf) is expected
    assert (why_dense(path, leaf) is None) is expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32", "complex64"])
def test_apply_selects_and_never_multiplies(dtype):
    p = jnp.array([1, 2, 3], dtype)
    if jnp.issubdtype(p.dtype, jnp.floating):
        p = p.at[1].set(jnp.nan)
    out = jaxsparse.apply({"w": p, "v": p}, {"w": jnp.array([True, False, True]), "v": None})
    assert out["w"].dtype == p.dtype and out["w"].tolist() == [1, 0, 3]
    assert out["v"] is p


def test_apply_is_differentiable_and_mapped():
    mask, p = jnp.array([True, False]), jnp.array([3.0, jnp.inf])
    grad = jax.jit(jax.grad(lambda p: jnp.sum(jaxsparse.apply(p, mask) ** 2)))(p)
    assert grad.tolist() == [6, 0]
    both = jax.vmap(jaxsparse.apply)(jnp.stack([p, p]), jnp.stack([mask, ~mask]))
    assert both.tolist() == [[3, 0], [0, jnp.inf]]


def random_trees(seed=0):
    rng = np.random.default_rng(seed)

    def one():
        kernels = {name: rng.random((5, 7)) < 0.4 for name in ("a", "b")}
        tree = {name: {"kernel": k, "bias": np.ones(7, bool)} for name, k in kernels.items()}
        return tree | {"c": {"kernel": np.ones((5, 7), bool)}}

    return one(), one()


def test_density_and_sparsity_count_prunable_leaves():
    masks, _ = random_trees()
    kernels = [layer["kernel"] for layer in masks.values()]
    alive, size = sum(int(k.sum()) for k in kernels), sum(k.size for k in kernels)
    masks = jax.tree.map(jnp.asarray, masks)
    assert jaxsparse.density(masks) == np.float32(alive) / np.float32(size)
    assert jaxsparse.sparsity(masks) == np.float32(size - alive) / np.float32(size)
    only_b = jaxsparse.density(masks, lambda path, leaf: path == "b/kernel")
    assert only_b == np.float32(kernels[1].sum()) / np.float32(35)
    assert jaxsparse.density({"bias": jnp.array([True, False])}) == 0.5
    assert jax.jit(jaxsparse.density)(masks) == jaxsparse.density(masks)


def test_overlap_is_the_jaccard_index_of_the_sparse_leaves():
    a, b = random_trees()
    both = either = 0
    for layer in ("a", "b"):
        for index in np.ndindex(5, 7):
            x, y = a[layer]["kernel"][index], b[layer]["kernel"][index]
            both, either = both + (x and y), either + (x or y)
    a, b = jax.tree.map(jnp.asarray, (a, b))
    assert jaxsparse.overlap(a, b) == np.float32(both) / np.float32(either)
    assert jaxsparse.overlap(a, a) == 1
    nothing = {"kernel": jnp.zeros((2, 2), bool)}
    assert jaxsparse.overlap(nothing, nothing) == 1
    assert jaxsparse.overlap(nothing, {"kernel": jnp.ones((2, 2), bool)}) == 0


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 9), (2, 0), (2, 3, 17)], ids=str)
def test_packing_is_bit_by_bit_along_the_last_axis(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    packed = jaxsparse.pack({"kernel": jnp.asarray(mask)})
    assert packed["kernel"].dtype == jnp.uint8
    assert np.array_equal(packed["kernel"], reference.pack(mask))
    back = jaxsparse.unpack(packed, {"kernel": jnp.zeros(shape)})
    assert back["kernel"].dtype == bool and np.array_equal(back["kernel"], mask)


def test_packing_scalars():
    for mask in (True, False):
        packed = jaxsparse.pack(jnp.asarray(mask))
        assert packed.tolist() == [128 * mask]
        assert jaxsparse.unpack(packed, jnp.float32(0)).tolist() is mask


def test_every_kind_of_key_gives_the_same_stream():
    typed = jax.random.key(7)
    kinds = [7, np.int64(7), np.uint32(7), jnp.int32(7), typed, jax.random.key_data(typed)]
    draws = [jax.random.bits(prng.as_key(key)) for key in (*kinds, jax.random.PRNGKey(7))]
    assert len({int(draw) for draw in draws}) == 1
    traced = jax.vmap(lambda key: jax.random.bits(prng.as_key(key)))(jnp.arange(6, 9))
    assert int(traced[1]) == int(draws[0])
    other = jax.random.key(7, impl="rbg")
    assert jax.random.key_impl(prng.as_key(other)) == "rbg"


def test_streams_are_folded_by_path():
    key = jax.random.key(0)
    found = {path: int(jax.random.bits(prng.leaf_key(key, path))) for path in "abc"}
    assert len(set(found.values())) == 3
    assert found["a"] == int(jax.random.bits(prng.leaf_key(key, "a")))
