"""How similar trained networks are: in their weights, and in their predictions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.checks import check_array, check_size
from jaxsparse.types import Array, Params


def distances(solutions: list[Params]) -> Array:
    """The L2 distance between each pair of several parameter trees.

    Args:
      solutions: at least one tree; all of the same structure.

    Returns:
      float32 `(k, k)`, symmetric, zero on the diagonal.

    Raises:
      ValueError: there is no tree, or the trees differ.

    Example:
      >>> import jax.numpy as jnp
      >>> distances([{"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([3.0, 4.0])}]).tolist()
      [[0.0, 5.0], [5.0, 0.0]]
    """
    if not isinstance(solutions, list | tuple):
        raise TypeError(f"solutions must be a list of trees, got {solutions!r}.")
    if not solutions:
        raise ValueError("solutions must hold at least one tree, got none.")
    flat = []
    for tree in solutions:
        leaves = trees.check_same(solutions[0], tree, "solutions", first="solutions")
        parts = [leaf.reshape(-1).astype(jnp.float32) for leaf in leaves if trees.is_float(leaf)]
        flat.append(jnp.concatenate(parts))
    points = jnp.stack(flat)
    return jax.lax.map(lambda one: jnp.sqrt(jnp.sum((points - one) ** 2, 1)), points)


def multidimensional_scaling(distances: Array, dimensions: int = 2) -> Array:
    """Points in the plane whose distances are as close to the given ones as a linear map allows.

    Classical scaling: the leading eigenvectors of the doubly centred squared distances.

    Args:
      distances: `(k, k)`, symmetric, as `distances` returns them.
      dimensions: of the points, in [1, k].

    Returns:
      `(k, dimensions)`, centred; the first axis has the largest spread. Signs are chosen so that in
      each column the entry of largest magnitude is positive.

    Raises:
      ValueError: the matrix is not square, or `dimensions` is out of range.

    References:
      Torgerson, "Multidimensional scaling: I. Theory and method" (1952).

    Example:
      >>> import jax.numpy as jnp
      >>> points = multidimensional_scaling(jnp.array([[0.0, 2.0], [2.0, 0.0]]), 1)
      >>> sorted(round(float(x), 3) for x in points[:, 0])
      [-1.0, 1.0]
    """
    distances = check_array("distances", distances)
    check_size("dimensions", dimensions)
    k = len(distances) if distances.ndim else 0
    if distances.shape != (k, k):
        raise ValueError(f"distances must be square, got shape {distances.shape}.")
    if dimensions > k:
        raise ValueError(f"dimensions must be in [1, {k}], got {dimensions}.")
    centre = jnp.eye(k) - 1 / k
    values, vectors = jnp.linalg.eigh(-0.5 * centre @ distances**2 @ centre)
    values, vectors = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0)[None], 0)
    return vectors * jnp.where(largest < 0, -1, 1) * jnp.sqrt(jnp.maximum(values, 0))


class Agreement(NamedTuple):
    """How similar the predictions of several networks are; float32 scalars.

    Attributes:
      disagreement: mean over pairs of the fraction of examples with different classes.
      divergence: mean over ordered pairs of `KL(p_i || p_j)` in nats, averaged over examples.
      accuracies: `(k,)`, of each network alone.
      ensemble: accuracy of their averaged probabilities.
    """

    disagreement: Array
    divergence: Array
    accuracies: Array
    ensemble: Array


def agreement(logits: Array, labels: Array) -> Agreement:
    """Compares what several networks predict on the same examples.

    Args:
      logits: `(k, examples, classes)`, k at least 2.
      labels: int `(examples,)`.

    Raises:
      ValueError: there are fewer than two networks, or the shapes do not fit.

    References:
      Fort et al., "Deep Ensembles: A Loss Landscape Perspective" (2019); Evci et al. (2020), table
      2.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0]]])
      >>> found = agreement(logits, jnp.array([0, 1]))
      >>> float(found.disagreement), found.accuracies.tolist(), float(found.ensemble)
      (0.5, [1.0, 0.5], 0.5)
    """
    logits, labels = check_array("logits", logits), check_array("labels", labels, jnp.integer)
    if labels.ndim != 1:
        raise ValueError(f"labels must be (examples,), got {labels.shape}.")
    if logits.ndim != 3 or len(logits) < 2 or logits.shape[1] != len(labels):
        raise ValueError(
            f"logits must be (k, {len(labels)}, classes) with k at least 2, for labels of shape "
            f"{labels.shape}; got {logits.shape}."
        )
    k, classes = len(logits), logits.argmax(-1)
    differ = jax.vmap(lambda one: disagreement(logits, one))(logits)
    kl = jax.vmap(lambda one: divergence(logits, one))(logits)
    pairs = k * (k - 1)
    together = jax.nn.softmax(logits.astype(jnp.float32)).mean(0).argmax(-1)
    return Agreement(
        jnp.sum(differ) / pairs,
        jnp.sum(kl) / pairs,
        jnp.mean((classes == labels).astype(jnp.float32), -1),
        jnp.mean((together == labels).astype(jnp.float32)),
    )


def disagreement(logits: Array, reference: Array) -> Array:
    """The fraction of examples that each network assigns to another class than a reference does.

    Args:
      logits: `(..., examples, classes)`.
      reference: `(examples, classes)`, such as those of the pruning solution.

    Returns:
      float32 `(...)` in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> float(
      ...     disagreement(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      ... )
      0.5
    """
    logits, reference = _fitting(logits, reference)
    return jnp.mean((logits.argmax(-1) != reference.argmax(-1)).astype(jnp.float32), -1)


def divergence(logits: Array, reference: Array) -> Array:
    """`KL(p || q)` of each network's predictions from a reference's predictions, in nats.

    Args:
      logits: `(..., examples, classes)`, of p.
      reference: `(examples, classes)`, of q, such as those of the pruning solution.

    Returns:
      float32 `(...)`, at least 0, the mean over the examples.

    Example:
      >>> import jax.numpy as jnp
      >>> found = divergence(jnp.array([[[0.0, 0.0]], [[5.0, 5.0]]]), jnp.array([[1.0, 1.0]]))
      >>> found.tolist()
      [0.0, 0.0]
    """
    logits, reference = _fitting(logits, reference)
    p, q = (jax.nn.log_softmax(one.astype(jnp.float32)) for one in (logits, reference))
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1), -1)


def _fitting(logits: Array, reference: Array) -> tuple[Array, Array]:
    logits, reference = check_array("logits", logits), check_array("reference", reference)
    if reference.ndim != 2:
        raise ValueError(f"reference must be (examples, classes), got shape {reference.shape}.")
    if logits.shape[-2:] != reference.shape:
        raise ValueError(
            f"logits must be (..., {reference.shape[0]}, {reference.shape[1]}), as the reference "
            f"is, got {logits.shape}."
        )
    return logits, reference
