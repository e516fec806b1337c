"""Scores say which weights matter: one float per weight, higher = kept or grown first.

Every function maps trees to a tree of the same structure; leaves that are not floating arrays pass
through. Scores are where gradients stop: no derivative flows through a selection made from them.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import prng, trees
from jaxsparse.checks import check_function
from jaxsparse.meshes import on_one_device
from jaxsparse.recognition import sparse_leaves
from jaxsparse.selection import kernels
from jaxsparse.types import Array, Key, Params, Prunable, Scores

__all__ = ["gradient", "grasp", "magnitude", "random_scores", "saliency", "snip", "synflow"]

Loss = Callable[[Params, Any], Array]


def _floats(
    function: Callable[..., Array], params: Params, *rest: Any, what: str, first: str = "params"
) -> Scores:
    def leaf(path: str, p: Array, *others: Any) -> Any:
        return function(path, p, *others) if trees.is_float(p) else p

    return trees.map_arrays(leaf, params, *rest, what=what, first=first)


def magnitude(params: Params) -> Scores:
    """The size of a weight: `|w|`.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude({"w": jnp.array([-2.0, 1.0])})["w"].tolist()
      [2.0, 1.0]
    """
    return _floats(lambda _, p: jnp.abs(p), params, what="params")


def random_scores(key: Key, params: Params) -> Scores:
    """Independent uniform scores in [0, 1), each leaf from its own stream, folded by its path.

    Args:
      key: an int, a typed key or raw key data.
      params: the tree whose shapes (and shardings, if the leaves are concrete) are used.

    Example:
      >>> import jax.numpy as jnp
      >>> random_scores(0, {"w": jnp.ones((2, 3))})["w"].shape
      (2, 3)
    """
    key = prng.as_key(key)
    return _floats(lambda path, p: drawn(prng.leaf_key(key, path), p), params, what="params")


def drawn(key: Array, leaf: Array) -> Array:
    """The random scores of one leaf, from its own key."""
    if (
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and not leaf.is_fully_replicated
    ):
        sharded = jax.jit(jax.random.uniform, static_argnums=1, out_shardings=leaf.sharding)
        return sharded(key, leaf.shape)
    kind = jax.random.key_impl(key)
    return _uniform(leaf.shape, kind, _has_kernel(kind))(jax.random.key_data(key))


def _has_kernel(kind: Any) -> bool:
    """Whether a compiled kernel draws the numbers of such keys: those of JAX's defaults."""
    default = kind == "threefry2x32" and jax.threefry_partitionable.value
    return default and jnp.result_type(float) == jnp.float32 and kernels.exist()


@functools.cache
def _uniform(shape: tuple[int, ...], kind: Any, by_kernel: bool) -> Callable[[Array], Array]:
    """`jax.random.uniform` of the data of a key."""

    def draw(data: Array) -> Array:
        return jax.random.uniform(jax.random.wrap_key_data(data, impl=kind), shape)

    if not by_kernel:
        return jax.jit(draw)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return on_one_device(lambda data: kernels.uniform(data, shape), draw, lambda _: result)


def gradient(grads: Params) -> Scores:
    """The size of the dense gradient: `|g|`, RigL's growth score.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient({"w": jnp.array([-2.0, 1.0])})["w"].tolist()
      [2.0, 1.0]
    """
    return _floats(lambda _, g: jnp.abs(g), grads, what="grads", first="grads")


def saliency(params: Params, grads: Params) -> Scores:
    """First-order change of the loss when a weight is removed: `|g * w|`.

    For 16-bit weights the score is a float32, because a float16 overflows above 65,504 and loses
    values below 1e-7.

    Raises:
      ValueError: the trees differ.

    Example:
      >>> import jax.numpy as jnp
      >>> saliency({"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([1.0, 3.0])})["w"].tolist()
      [2.0, 3.0]
    """
    return _floats(lambda _, p, g: jnp.abs(_product(p, g)), params, grads, what="grads")


def snip(loss: Loss, params: Params, batches: Iterable[Any]) -> Scores:
    """Connection sensitivity at initialization: `|sum_b g_b * w|`, normalised to sum 1.

    Args:
      loss: `(params, batch) -> scalar`.
      params: the weights at which to score.
      batches: a list of one or more batches; gradients are summed with their sign, before the
        absolute value is taken.

    Returns:
      Scores in the structure of `params`; prune them with `scope="global"` as published.

    Raises:
      TypeError: `batches` is a single batch, not in a list.
      ValueError: there is no batch.

    References:
      Lee et al., "SNIP" (2019), equation 6.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: (p["w"] * x).sum()
      >>> snip(loss, {"w": jnp.array([1.0, 3.0])}, [jnp.ones(2)])["w"].tolist()
      [0.25, 0.75]
    """
    check_function("loss", loss, "(params, batch) -> scalar")
    floats, whole = trees.floats(params)
    gradient = jax.grad(lambda floats, batch: loss(whole(floats), batch))
    total = _total(gradient(floats, batch) for batch in _several(batches))
    return _normalised(saliency(params, whole(total)))


def grasp(
    loss: Loss, params: Params, batches: Iterable[Any], *, prunable: Prunable | None = None
) -> Scores:
    """Gradient signal preservation: `w * (H g)`, divided by the absolute value of its sum.

    The weights whose removal lowers the gradient flow most score highest and are kept. `g` and `H`
    are the gradient and Hessian of the loss summed over the batches, taken over prunable leaves.

    Args:
      loss: `(params, batch) -> scalar`; the published loss divides the logits by a temperature of
        200.
      params: the weights at which to score.
      batches: a list of one or more batches.
      prunable: `(path, leaf) -> bool`; the gradient of other leaves does not count.

    Raises:
      TypeError: `batches` is a single batch, not in a list.
      ValueError: there is no batch, or the filter matches nothing.

    References:
      Wang et al., "Picking winning tickets before training by preserving gradient flow" (2020),
      equation 8, with the sign flipped so that higher is kept. Scores have both signs, so prune
      them with `signed=True`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda p, x: 0.5 * (p["kernel"] ** 2 * x).sum()
      >>> p = {"kernel": jnp.array([[1.0, 2.0], [0.0, 0.0]])}
      >>> grasp(loss, p, [jnp.ones((2, 2))])["kernel"].tolist()
      [[0.20000000298023224, 0.800000011920929], [0.0, 0.0]]
    """
    check_function("loss", loss, "(params, batch) -> scalar")
    batches = _several(batches)
    floats, whole = trees.floats(params)
    gradient = jax.grad(lambda floats, batch: loss(whole(floats), batch))
    pairs = zip(jax.tree.leaves(params), sparse_leaves(params, prunable), strict=True)
    chosen = [use for leaf, use in pairs if trees.is_float(leaf)]
    flow = [
        g if use else jnp.zeros_like(g)
        for g, use in zip(_total(gradient(floats, b) for b in batches), chosen, strict=True)
    ]

    def product(batch: Any) -> list[Array]:
        return jax.jvp(lambda floats: gradient(floats, batch), (floats,), (flow,))[1]

    products = whole(_total(map(product, batches)))
    scores = _floats(lambda _, p, h: _product(p, h), params, products, what="params")
    return _normalised(scores)


def synflow(forward: Callable[[Params, Any], Array], params: Params, inputs: Any) -> Scores:
    """Synaptic flow: `|w * dR/dw|`, where R is the summed output of the net with absolute weights.

    Needs no data: every input is replaced by ones. As published it is used over about a hundred
    rounds; see `jaxsparse.prune_iteratively`.

    Args:
      forward: `(params, inputs) -> outputs`.
      params: the weights at which to score; dead weights must be zero.
      inputs: one example batch (of size 1, say), for its shapes and types only.

    References:
      Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
      flow" (2020), algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> forward = lambda p, x: x @ p["w"]
      >>> synflow(forward, {"w": jnp.array([[1.0], [-2.0]])}, jnp.zeros((1, 2)))["w"].tolist()
      [[1.0], [2.0]]
    """
    check_function("forward", forward, "(params, inputs) -> outputs")
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), inputs)
    positive = magnitude(params)
    flow = jax.grad(lambda p: jnp.sum(forward(p, ones)).astype(jnp.float32))(positive)
    return saliency(positive, flow)


def _product(p: Array, g: Array) -> Array:
    wide = trees.wide(p)
    return p.astype(wide) * g.astype(wide)


def _several(batches: Iterable[Any]) -> list[Any]:
    single = (
        not isinstance(batches, Iterable)
        or isinstance(batches, Mapping | str | bytes)
        or hasattr(batches, "shape")  # an array would be read row by row
        or hasattr(batches, "_fields")  # and a NamedTuple field by field
    )
    if single:
        raise TypeError(
            f"batches must be a list of batches, got a single {type(batches).__name__}; write "
            "[batch] for one."
        )
    found = list(batches)
    if not found:
        raise ValueError("batches: needs at least one batch, got none.")
    return found


def _total(lists: Iterable[list[Array]]) -> list[Array]:
    return functools.reduce(lambda total, more: jax.tree.map(jnp.add, total, more), lists)


def _normalised(scores: Scores) -> Scores:
    total = sum(
        jnp.sum(s.astype(jnp.float32)) for s in jax.tree.leaves(scores) if trees.is_float(s)
    )
    total = jnp.maximum(jnp.abs(total), jnp.finfo(jnp.float32).tiny)
    return _floats(lambda _, s: s / total.astype(s.dtype), scores, what="scores")
