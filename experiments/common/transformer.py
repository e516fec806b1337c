"""A small transformer over characters."""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array

LAYERS = 4
WIDTH = 128
HEADS = 4


class Block(nnx.Module):
    """Attention and a perceptron of four times the width, each behind its own normalization."""

    def __init__(self, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        def linear(features_in: int, features_out: int) -> nnx.Linear:
            return nnx.Linear(features_in, features_out, kernel_init=kernel_init, rngs=rngs)

        self.attention_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.query = linear(WIDTH, WIDTH)
        self.key = linear(WIDTH, WIDTH)
        self.value = linear(WIDTH, WIDTH)
        self.out = linear(WIDTH, WIDTH)
        self.perceptron_norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = linear(WIDTH, 4 * WIDTH)
        self.down = linear(4 * WIDTH, WIDTH)

    def __call__(self, stream: Array) -> Array:
        def heads(features: Array) -> Array:
            return features.reshape(*features.shape[:-1], HEADS, WIDTH // HEADS)

        normed = self.attention_norm(stream)
        attended = jax.nn.dot_product_attention(
            heads(self.query(normed)),
            heads(self.key(normed)),
            heads(self.value(normed)),
            is_causal=True,
        )
        stream = stream + self.out(attended.reshape(stream.shape))
        return stream + self.down(jax.nn.gelu(self.up(self.perceptron_norm(stream))))


class CharacterTransformer(nnx.Module):
    """Causal, 4 layers of width 128 with 4 heads, normalization first, learned positions.

    All kernels have two axes, so that every pattern and distribution applies to them.
    """

    def __init__(
        self, context: int, vocabulary: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs
    ):
        self.tokens = nnx.Embed(vocabulary, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(context, WIDTH, rngs=rngs)
        for index in range(LAYERS):
            setattr(self, f"block{index + 1}", Block(kernel_init=kernel_init, rngs=rngs))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, vocabulary, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, tokens: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits of the next character, `(batch, length, vocabulary)`, length up to the context."""
        stream = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        for index in range(LAYERS):
            stream = getattr(self, f"block{index + 1}")(stream)
        return self.head(self.norm(stream))
