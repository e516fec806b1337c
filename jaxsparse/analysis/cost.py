"""What a sparse network costs: FLOPs of a forward pass and of training, and bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse import jaxprs, trees
from jaxsparse.analysis._products import Owner, Products
from jaxsparse.checks import check_choice, check_count, check_function, check_number, check_size
from jaxsparse.masks import check_masks
from jaxsparse.types import Masks, Params

_SPARSE = ("fixed", "sparse_evolution", "dynamic_reparameterization", "deep_rewiring")
_METHODS = ("dense", *_SPARSE, "rigl", "sparse_momentum", "gradual")


class LeafCost(NamedTuple):
    """FLOPs per example of the products that read one parameter leaf.

    Attributes:
      dense: as if every weight were alive.
      sparse: `dense` times the leaf's density.
    """

    dense: float
    sparse: float


class Cost(NamedTuple):
    """FLOPs per example of a forward pass.

    Attributes:
      dense: all products, every weight alive.
      sparse: all products, living weights only.
      leaves: a `LeafCost` for every leaf that takes part in a product, by path.
      other: products without parameters (attention scores), fully included in both totals.
      notes: what the numbers leave out (a loop of unknown length, an opaque kernel); mostly empty.
    """

    dense: float
    sparse: float
    leaves: dict[str, LeafCost]
    other: float
    notes: tuple[str, ...]


def flops(
    fn: Callable[..., Any], params: Params, masks: Masks, *args: Any, batch_size: int = 1
) -> Cost:
    r"""Counts the FLOPs per example of `fn(params, *args)` with only the living weights computed.

    $$f = \frac{1}{B} \Big( \sum_l d_l \cdot 2 M_l + 2 M_0 \Big)$$

    with $M_l$ the multiply-adds that read leaf $l$, $d_l$ the density of its mask, $M_0$ the
    multiply-adds between activations, B the batch size. `fn` is traced, never run. Matrix products
    and convolutions count, also inside `scan` (times its length), `cond` (its costliest branch),
    `jit`, `vmap` and `checkpoint`; normalization, biases, activation functions and the loss do not.
    A convolution counts every tap at every output position, padding included: exact without
    padding, the usual formula with it. The length of a `while` loop is unknown, so one iteration
    counts and `notes` says so. A part of a leaf counts with the density of the whole leaf.

    Args:
      fn: the forward pass of a batch, `fn(params, *args)`.
      params: its parameters; arrays or `jax.ShapeDtypeStruct`.
      masks: boolean arrays in the structure of `params`; None, for the tree or a leaf: all alive.
      *args: the other arguments, including the batch; arrays or `jax.ShapeDtypeStruct`. Anything
        that is not an array is passed unchanged.
      batch_size: examples in the batch, at least 1.

    Returns:
      A `Cost`, in FLOPs per example; one multiply-add is two FLOPs.

    Raises:
      ValueError: `batch_size` is below 1, or `masks` do not fit `params`.
      TypeError: the masks are not boolean.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"hidden": jnp.ones((4, 8)), "out": jnp.ones((8, 2))}
      >>> masks = {"hidden": jnp.arange(32).reshape(4, 8) < 8, "out": jnp.ones((8, 2), bool)}
      >>> forward = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["out"]
      >>> cost = flops(forward, params, masks, jnp.ones((16, 4)), batch_size=16)
      >>> cost.dense, cost.sparse, cost.leaves["hidden"]
      (96.0, 48.0, LeafCost(dense=64.0, sparse=16.0))

    References:
      Evci et al., Rigging the Lottery, 2020, appendix H.
    """
    check_function("fn", fn, "(params, *args)")
    trees.check_tree(params)
    check_size("batch_size", batch_size)
    leaves = jax.tree.leaves((params, args))
    places = [i for i, leaf in enumerate(leaves) if trees.is_array(leaf)]
    named = jax.tree.leaves_with_path(params)
    sizes = [leaf.size if trees.is_float(leaf) else 0 for _, leaf in named]
    owners: list[Owner] = [
        ({i: 1} if trees.is_float(leaves[i]) else {}) if i < len(named) else None for i in places
    ]
    alive = [count for _, _, count in _leaves_with_masks(params, masks)]
    found = Products(sizes)
    found.walk(jaxprs.trace(fn, params, args), owners)

    per_leaf: dict[str, LeafCost] = {}
    for i, (path, _) in enumerate(named):
        if i in found.flops:
            dense = found.flops[i]
            mine = LeafCost(dense / batch_size, dense * alive[i] / max(sizes[i], 1) / batch_size)
            per_leaf[trees.name(path)] = mine
    other = found.flops[None] / batch_size
    return Cost(
        dense=sum(leaf.dense for leaf in per_leaf.values()) + other,
        sparse=sum(leaf.sparse for leaf in per_leaf.values()) + other,
        leaves=per_leaf,
        other=other,
        notes=tuple(sorted(found.notes)),
    )


def training_flops(
    dense: float,
    sparse: float,
    method: str,
    *,
    every: int | None = None,
    sparsities: Sequence[float] | None = None,
) -> float:
    """FLOPs of training per example and step: forward, and a backward pass of twice its cost.

    With D and S the dense and the sparse forward pass and T = `every`, a step costs

    - `dense`: `3 D`.
    - `fixed`, `sparse_evolution`, `dynamic_reparameterization`, `deep_rewiring`: `3 S`, without a
      dense gradient; also SNIP and static masks.
    - `sparse_momentum`: `2 S + D`, because the weight gradient is dense at every step.
    - `rigl`: `(3 S T + 2 S + D) / (T + 1)`, because that gradient is dense at mask updates.
    - `gradual`: the mean of `3 D (1 - s(t))`, where s(t) is the sparsity at step t.

    These are the FLOPs of an implementation that skips the zeros; masked dense arrays compute
    `3 D` whatever the method. The cost of choosing masks is left out.

    Args:
      dense: FLOPs of the dense forward pass, such as `Cost.dense`.
      sparse: FLOPs of the sparse one, such as `Cost.sparse`.
      method: one of these names.
      every: steps between mask updates, at least 1; `rigl` needs it.
      sparsities: the sparsity at every step, or at equally spaced ones; `gradual` needs it.

    Returns:
      FLOPs per example and step, the mean over the run.

    Raises:
      ValueError: the method is unknown, or an argument that it needs is missing or out of range.

    Example:
      >>> training_flops(100.0, 10.0, "rigl", every=99)
      30.9
      >>> training_flops(100.0, 10.0, "gradual", sparsities=[0.0, 0.9])
      165.0

    References:
      Evci et al., Rigging the Lottery, 2020, appendix H.
    """
    check_number("dense", dense)
    check_number("sparse", sparse)
    check_choice("method", method, _METHODS)
    if method == "dense":
        return 3 * dense
    if method == "sparse_momentum":
        return 2 * sparse + dense
    if method == "rigl":
        if every is None:
            raise ValueError("every must be at least 1 for method='rigl', got None.")
        check_count("every", every, least=1)
        return (3 * sparse * every + 2 * sparse + dense) / (every + 1)
    if method == "gradual":
        if sparsities is None or not len(sparsities):
            raise ValueError("sparsities must hold the sparsity of each step for method='gradual'.")
        if not all(0 <= s <= 1 for s in sparsities):
            raise ValueError("sparsities must all be in [0, 1].")
        return sum(3 * dense * (1 - s) for s in sparsities) / len(sparsities)
    return 3 * sparse


class Memory(NamedTuple):
    """Bytes of a sparse network, in each of the forms in which it is stored.

    Attributes:
      weights: the parameters as dense arrays.
      masks: the masks, one byte per element.
      packed_masks: the masks as `jaxsparse.pack` packs them, eight elements to a byte.
      living_weights: the parameters without their zeros: values, and a flat index for each (four
        bytes, eight where a leaf has 2^31 elements or more). A leaf without zeros stays dense.
      optimizer: every array of the optimizer state; the masks too if they are part of it.
    """

    weights: int
    masks: int
    packed_masks: int
    living_weights: int
    optimizer: int


def memory(params: Params, masks: Masks, opt_state: Any = None) -> Memory:
    """Counts the bytes of parameters, masks and optimizer state.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`; leaves that are not arrays count as nothing.
      masks: boolean arrays in the structure of `params`; None, for the tree or a leaf: all alive.
      opt_state: the state of an optimizer, or None.

    Returns:
      A `Memory`, in bytes.

    Raises:
      ValueError: `masks` do not fit `params`.
      TypeError: the masks are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> weights, mask = jnp.ones((10, 10)), jnp.arange(100).reshape(10, 10) < 10
      >>> memory({"w": weights}, {"w": mask})
      Memory(weights=400, masks=100, packed_masks=20, living_weights=80, optimizer=0)
    """
    trees.check_tree(params)
    weights, bits, packed, living_weights = 0, 0, 0, 0
    for leaf, mask, alive in _leaves_with_masks(params, masks):
        if not trees.is_array(leaf):
            continue
        value = leaf.dtype.itemsize
        weights += leaf.size * value
        index = 0 if alive == leaf.size else 4 if leaf.size < 2**31 else 8
        living_weights += alive * (value + index)
        if mask is not None:
            *rows, columns = leaf.shape or (1,)
            bits += leaf.size
            packed += math.prod(rows) * -(-columns // 8)
    return Memory(weights, bits, packed, living_weights, optimizer=_bytes(opt_state))


def _leaves_with_masks(params: Params, masks: Masks) -> list[tuple[Any, Any, int]]:
    """`(leaf, mask or None, living weights)` of each leaf; without a mask all weights live."""
    leaves = jax.tree.leaves(params)
    found: list[Any] = [None] * len(leaves)
    if masks is not None:
        check_masks(masks)
        found = trees.check_same(params, masks, "masks")
    found = [mask if trees.is_array(mask) else None for mask in found]
    return [
        (leaf, mask, getattr(leaf, "size", 0) if mask is None else int(np.count_nonzero(mask)))
        for leaf, mask in zip(leaves, found, strict=True)
    ]


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if trees.is_array(x))
