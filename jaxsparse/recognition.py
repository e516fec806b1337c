"""Which leaves of a tree may be sparse, and why the others stay dense."""

import collections
import functools
import logging
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import trees
from jaxsparse.checks import check_function
from jaxsparse.types import Array, Params, Prunable

_LOGGER = logging.getLogger("jaxsparse")
_OFFSETS = {"bias", "biases", "beta", "offset", "scale", "scales", "gamma"}
_NORMS = {"ln", "bn", "gn", "rms"}
_EMBEDDINGS = {"emb", "embs", "posemb", "wte", "wpe"}
_EMBEDS = ("embed", "embeds", "embedding", "embeddings")


def default_prunable(path: str, leaf: Any) -> bool:
    """The default filter: matrices and kernels, but no biases, scales, norms or embeddings.

    A leaf may be sparse if it has at least two axes longer than 1 and its name does not rule it
    out. The page on masks has the table of names; `jaxsparse.summary` says for every leaf why it is
    sparse or dense. A dot in a key counts as a slash: `layer.0.bias` is a bias.

    Args:
      path: the leaf's path, such as `"fc1/kernel"`.
      leaf: an array, or anything with a shape and a type.

    Example:
      >>> import jax.numpy as jnp
      >>> default_prunable("fc1/kernel", jnp.ones((4, 3))), default_prunable("bias", jnp.ones((4,)))
      (True, False)
      >>> default_prunable("blocks/ln1", jnp.ones((12, 64)))  # the scales of 12 layers
      False
    """
    if not isinstance(path, str):
        raise TypeError(f"path must be a string such as 'fc1/kernel', got {path!r}.")
    return why_dense(path, leaf) is None


def asked_once(prunable: Prunable | None) -> Prunable | None:
    """The same filter, which remembers its answers; None still means the default filter."""
    if prunable is None:
        return None
    answers: dict[Any, bool] = {}

    def ask(path: str, leaf: Any) -> bool:
        question = path, getattr(leaf, "shape", None)
        if question not in answers:
            answers[question] = prunable(path, leaf)
        return answers[question]

    return ask


def why_dense(path: str, leaf: Any) -> str | None:
    """Why the default filter leaves a leaf dense, in a few words; None where it may be sparse."""
    if not trees.is_float(leaf):
        few = trees.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return f"of {leaf.dtype}, fewer than 16 bits" if few else "not a floating array"
    named = _why_by_name(path, len(leaf.shape))
    if named is not None:
        return named
    if sum(size > 1 for size in leaf.shape) < 2:
        return "fewer than two axes longer than 1"
    return None


def filter_of(prunable: Prunable | None) -> Prunable:
    """The filter, or the default one.

    Raises:
      TypeError: it is not a function.
    """
    if prunable is not None:
        check_function("prunable", prunable, "(path, leaf) -> bool")
    return prunable or default_prunable


@functools.lru_cache(maxsize=4096)
def _why_by_name(path: str, ndim: int) -> str | None:
    """Cached, because every trace and every log line asks for the same few names again."""
    *modules, last = trees.parts(path)
    module = modules[-1] if modules else ""
    if _is_offset(last, bool(modules)) or _is_norm(last) or _is_embedding(last) or _is_token(last):
        return f"named {last}"
    if _is_norm(module) and last != "kernel":
        return f"of a norm, {module}"
    # With more axes it is a convolution over patches, or a stack.
    if _is_embedding(module) and last in ("weight", "w", "table") and ndim == 2:
        return f"of an embedding, {module}"
    return None


def why(path: str, leaf: Any, prunable: Prunable | None) -> tuple[bool, str]:
    """Whether a leaf may be sparse under a filter (None is the default one), and the reason."""
    if prunable is None or not trees.is_float(leaf):
        reason = why_dense(path, leaf)
        axes = sum(size > 1 for size in leaf.shape) if reason is None else 0
        return reason is None, reason or f"{axes} axes longer than 1"
    chosen = bool(filter_of(prunable)(path, leaf))
    return chosen, "prunable= says so" if chosen else "prunable= leaves it out"


def sparse_leaves(params: Params, prunable: Prunable | None, what: str = "params") -> list[bool]:
    """One bool per leaf: is it floating, and accepted by the filter?

    The choice goes to the logger "jaxsparse" at level INFO, once per outcome.

    Raises:
      ValueError: there are array leaves, but the filter accepts none of them.
    """
    trees.check_tree(params, what)
    filter_of(prunable)
    found = [(trees.name(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]
    arrays = {i: why(*named, prunable) for i, named in enumerate(found) if trees.is_array(named[1])}
    chosen = [i in arrays and arrays[i][0] for i in range(len(found))]
    if arrays and not any(chosen):
        largest = sorted(arrays, key=lambda i: -math.prod(found[i][1].shape))
        told = [f"{found[i][0]} {found[i][1].shape}: {arrays[i][1]}" for i in largest]
        raise ValueError(
            f"prunable: the filter matches none of the {len(arrays)} array leaves "
            f"({'; '.join(told[:8])}{'; ...' if len(told) > 8 else ''}). Only floating arrays "
            "count; pass prunable=lambda path, leaf: ... that is True for the leaves to prune."
        )
    if arrays and _LOGGER.isEnabledFor(logging.INFO):
        _say(_outcome([(found[i][0], *arrays[i]) for i in arrays]))
    return chosen


def as_float(leaf: Array) -> Any:
    """What a filter is given for a mask: a float array of its shape; other arrays are unchanged."""
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if leaf.dtype == jnp.bool_ else leaf


def _outcome(leaves: list[tuple[str, bool, str]]) -> str:
    """A line for every reason; leaves whose names differ only in numbers are counted together."""
    lines: dict[str, collections.Counter[str]] = {}
    for name, chosen, reason in sorted(leaves, key=lambda leaf: not leaf[1]):
        line = f"{'sparse' if chosen else 'dense'} ({reason})"
        lines.setdefault(line, collections.Counter())[re.sub(r"\d+", "*", name)] += 1
    return "\n".join(
        f"{line}: " + ", ".join(f"{name} x {n}" if n > 1 else name for name, n in names.items())
        for line, names in lines.items()
    )


@functools.lru_cache(maxsize=256)
def _say(text: str) -> None:
    """Logs a text; the cache makes sure that it is logged only once."""
    _LOGGER.info(text)


def _words(name: str) -> list[str]:
    """`LayerNorm_0` -> layer, norm; digits are left out."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _is_offset(name: str, in_module: bool) -> bool:
    """A `b` is a bias inside a module; at the top level it may be one of a, b, c."""
    letter = re.fullmatch(r"b_?\d+", name) or (name == "b" and in_module)
    return bool(letter) or not _OFFSETS.isdisjoint(_words(name))


def _is_norm(name: str) -> bool:
    return any(word in _NORMS or word.endswith(("norm", "norms")) for word in _words(name))


def _is_embedding(name: str) -> bool:
    """The last word decides: `embed_proj` is a layer. Patches and unembeddings are layers too."""
    words = _words(name)
    if len(words) > 1 and words[-1] in ("tokens", "positions", "table", "in"):
        words.pop()
    if not words or any(word.startswith(("patch", "unembed")) for word in words):
        return False
    return words[-1] in _EMBEDDINGS or words[-1].endswith(_EMBEDS)


def _is_token(name: str) -> bool:
    words = _words(name)
    return words == ["cls"] or words[-1:] in (["token"], ["tokens"])
