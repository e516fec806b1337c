"""A decoder-only transformer, small by default, for characters."""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class Block(nnx.Module):
    """Attention and a perceptron of four times the width, each after its own normalization."""

    def __init__(self, width: int, heads: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        def linear(features_in: int, features_out: int) -> nnx.Linear:
            return nnx.Linear(features_in, features_out, kernel_init=kernel_init, rngs=rngs)

        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.out = linear(width, width)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width)

    def __call__(self, stream: Array) -> Array:
        def heads(features: Array) -> Array:
            return features.reshape(*features.shape[:-1], self.heads, -1)

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
    """A causal transformer with normalization first and learned positions.

    All kernels have two axes, so that every pattern and distribution applies to them.
    """

    def __init__(
        self,
        context: int,
        vocabulary: int,
        *,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        common = {"kernel_init": kernel_init, "rngs": rngs}
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(context, width, rngs=rngs)
        self.layers = layers
        for index in range(layers):
            setattr(self, f"block{index + 1}", Block(width, heads, **common))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, **common)

    def __call__(
        self, tokens: Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Array:
        """Logits of the next character, `(batch, length, vocabulary)`, length up to the context."""
        stream = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[-1]))
        for index in range(self.layers):
            stream = getattr(self, f"block{index + 1}")(stream)
        return self.head(self.norm(stream))
