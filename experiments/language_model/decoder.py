"""A modern decoder: RMSNorm, rotary embeddings, grouped queries, gated feed-forward.

Its layers are one stack, which a scan iterates over: one trace and one compilation for any depth.
Each kernel is one leaf `(layers, in, out)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
VOCABULARY = 256  # bytes


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder.

    Attributes:
      layers: number of layers in the stack.
      width: of the residual stream, a multiple of twice `heads`.
      heads: of the queries.
      groups: heads of keys and values, each shared by `heads / groups` queries.
      hidden: width of the gated feed-forward.
      tied: whether the output layer is the embedding.
      compute: type in which products are computed; parameters are float32.
      checkpoint: whether a layer's activations are recomputed in the backward pass.
    """

    layers: int
    width: int
    heads: int
    groups: int
    hidden: int
    tied: bool = True
    compute: str = "float32"
    checkpoint: bool = False

    @property
    def attention(self) -> int:
        """Weights of a layer's attention."""
        return 2 * self.width * self.width * (self.heads + self.groups) // self.heads

    @property
    def sparse_weights(self) -> int:
        """Weights of the kernels, which may be sparse."""
        return self.layers * (self.attention + 3 * self.width * self.hidden)

    @property
    def weights(self) -> int:
        """All weights."""
        tables = VOCABULARY * self.width * (1 if self.tied else 2)
        return self.sparse_weights + tables + (2 * self.layers + 1) * self.width

    def check(self) -> None:
        """Raises ValueError if the sizes are inconsistent."""
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of twice the {self.heads} heads, got {self.width}."
            )
        if self.heads % self.groups:
            raise ValueError(f"groups must divide the {self.heads} heads, got {self.groups}.")


def smaller(architecture: Architecture, weights: int) -> Architecture:
    """The same decoder, narrower, of at most this many weights; width and feed-forward both shrink.

    Raises:
      ValueError: the narrowest one has more weights.

    >>> large = Architecture(layers=2, width=64, heads=4, groups=2, hidden=128)
    >>> smaller(large, large.weights // 4).weights / large.weights
    0.249...
    """
    step = 2 * architecture.heads
    for width in range(architecture.width, 0, -step):
        hidden = max(1, architecture.hidden * width // architecture.width)
        found = dataclasses.replace(architecture, width=width, hidden=hidden)
        if found.weights <= weights:
            more = (weights - found.weights) // (3 * width * found.layers)
            return dataclasses.replace(found, hidden=hidden + more)
    raise ValueError(
        f"weights is {weights}; the narrowest decoder of {architecture.layers} layers has "
        f"{found.weights}: choose a lower sparsity."
    )


def rotate(features: Array, base: float = 10_000.0) -> Array:
    """Rotary embeddings: pairs of features rotated by angles that grow with the position.

    The product of two rotated vectors depends only on the distance between their positions.

    Args:
      features: `(..., length, heads, size)`, size even.
      base: of the wavelengths.

    References:
      Su et al., RoFormer, 2021, eq. 34.
    """
    length, half = features.shape[-3], features.shape[-1] // 2
    speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (jnp.arange(length, dtype=jnp.float32)[:, None] * speeds)[:, None]
    first, second = jnp.split(features.astype(jnp.float32), 2, axis=-1)
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(features.dtype)


class Block(nnx.Module):
    """Attention and a gated feed-forward, each after its own norm and added to the stream."""

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        a, dtype = architecture, jnp.dtype(architecture.compute)
        self.heads, self.groups, size = a.heads, a.groups, a.width // a.heads
        # Additions to the stream are scaled down, so that its variance does not grow with depth.
        into = nnx.initializers.variance_scaling(1 / (2 * a.layers), "fan_in", "normal")
        plain = nnx.initializers.lecun_normal()

        def linear(inputs: int, outputs: int, init: nnx.Initializer = plain) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=False, dtype=dtype, kernel_init=init, rngs=rngs
            )

        self.attention_norm = nnx.RMSNorm(a.width, dtype=dtype, rngs=rngs)
        self.query = linear(a.width, a.width)
        self.key = linear(a.width, a.groups * size)
        self.value = linear(a.width, a.groups * size)
        self.out = linear(a.width, a.width, into)
        self.forward_norm = nnx.RMSNorm(a.width, dtype=dtype, rngs=rngs)
        self.gate = linear(a.width, a.hidden)
        self.up = linear(a.width, a.hidden)
        self.down = linear(a.hidden, a.width, into)

    def __call__(self, stream: Array) -> Array:
        windows, width = stream.shape[:-1], stream.shape[-1]
        # Kernels see matrices: XLA multiplies stacks of them more slowly in the backward pass.
        stream = stream.reshape(-1, width)

        def heads(features: Array, count: int) -> Array:
            return features.reshape(*windows, count, -1)

        normed = self.attention_norm(stream)
        attended = jax.nn.dot_product_attention(
            rotate(heads(self.query(normed), self.heads)),
            rotate(heads(self.key(normed), self.groups)),
            heads(self.value(normed), self.groups),
            is_causal=True,
        )
        stream = stream + self.out(attended.reshape(stream.shape))
        normed = self.forward_norm(stream)
        stream = stream + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))
        return stream.reshape(*windows, width)


class Decoder(nnx.Module):
    """Bytes to logits of the next byte.

    Args:
      architecture: its sizes.
      rngs: of the weights.
      place: puts activations in their place on a mesh.
    """

    def __init__(
        self,
        architecture: Architecture,
        rngs: nnx.Rngs,
        place: Callable[[Array], Array] = lambda stream: stream,
    ):
        a, dtype = architecture, jnp.dtype(architecture.compute)
        self.tied, self.checkpoint, self.place = a.tied, a.checkpoint, place
        self.tokens = nnx.Embed(VOCABULARY, a.width, dtype=dtype, rngs=rngs)
        stacked = nnx.vmap(lambda rngs: Block(a, rngs), in_axes=0, out_axes=0)
        self.blocks = stacked(rngs.split(a.layers))
        self.norm = nnx.RMSNorm(a.width, dtype=dtype, rngs=rngs)
        if not a.tied:
            self.head = nnx.Linear(a.width, VOCABULARY, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Logits `(batch, length, 256)` in float32 from integers `(batch, length)`."""
        graph, stack = nnx.split(self.blocks)

        def layer(stream: Array, params: Any) -> tuple[Array, None]:
            return self.place(nnx.merge(graph, params)(stream)), None

        if self.checkpoint:
            layer = jax.checkpoint(layer, prevent_cse=False)
        stream, _ = jax.lax.scan(layer, self.place(self.tokens(tokens)), stack)
        normed = self.norm(stream)
        logits = self.tokens.attend(normed) if self.tied else self.head(normed)
        return logits.astype(jnp.float32)


def make_decoder(
    architecture: Architecture, place: Callable[[Array], Array] = lambda stream: stream
) -> tuple[Callable[[Any, Array], Array], Callable[[Array], Any]]:
    """A decoder as pure functions, for the training loop.

    Args:
      architecture, place: as for `Decoder`.

    Returns:
      `apply(params, tokens) -> logits` and `init_params(key) -> params`.

    Raises:
      ValueError: the sizes are inconsistent.
    """
    architecture.check()
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(0), place)))

    def apply(params: Any, tokens: Array) -> Array:
        return nnx.merge(graph, params)(tokens)

    def init_params(key: Array) -> Any:
        return nnx.state(Decoder(architecture, nnx.Rngs(key), place), nnx.Param)

    return apply, init_params
