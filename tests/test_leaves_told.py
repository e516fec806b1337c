"""What users are told of the choice of leaves and axes: in errors, in the log, in `summary`."""

import logging

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse
from jaxsparse.axes import all_axes

SGD = optax.sgd(0.1)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


UNCLEAR = {
    **{f"layers.{i}.attn.query": {"kernel": shaped(4, 64, 8)} for i in range(12)},
    "block": {"w": shaped(12, 4, 6), "kernel": shaped(3, 4, 6)},
    "moe": {"experts": {"weight": shaped(12, 8, 512, 48), "kernel": shaped(8, 64, 32)}},
    "scan": {"query": {"kernel": shaped(12, 32, 16, 8)}, "out": {"kernel": shaped(12, 16, 8, 32)}},
    "deep": {"kernel": shaped(2, 3, 4, 5, 6, 7), "weight": shaped(2, 3, 4, 5, 6, 7)},
    "odd": {"0": {"w": shaped(4, 6, 8)}, "1": {"w": shaped(5, 6, 8)}},
    "clear": {"kernel": shaped(4, 6)},
}
ASKING = {
    "erk": lambda params, axes: jaxsparse.erk(params, 0.5, axes=axes),
    "erdos_renyi": lambda params, axes: jaxsparse.erdos_renyi(params, 0.5, axes=axes),
    "fan_in": lambda params, axes: jax.eval_shape(
        lambda p: jaxsparse.prune(p, 0.5, pattern=jaxsparse.fan_in, axes=axes), params
    ),
    "min_alive": lambda params, axes: jax.eval_shape(
        lambda p: jaxsparse.prune(p, 0.5, min_alive="unit", axes=axes), params
    ),
    "rigl": lambda params, axes: jax.eval_shape(
        jaxsparse.rigl(SGD, 0.5, key=0, pattern=jaxsparse.channel, axes=axes).init, params
    ),
    "sparse_init": lambda params, axes: jax.eval_shape(
        lambda p: jaxsparse.sparse_init(0, p, jax.tree.map(lambda leaf: leaf > 0, p), axes=axes),
        params,
    ),
}


def pasted(error):
    """What a user copies out of the message and puts into a call."""
    text = str(error)
    start = text.index("axes={")
    return eval(text[start + len("axes=") : text.index("\n}", start) + 2], {"jaxsparse": jaxsparse})


@pytest.mark.parametrize("call", ASKING)
def test_all_unclear_leaves_are_in_one_error_to_paste(call):
    with pytest.raises(ValueError, match="axes: cannot tell.*and 17 more") as error:
        ASKING[call](UNCLEAR, None)
    axes = pasted(error.value)
    assert len(axes) == 11  # twelve layers share one regex
    ASKING[call](UNCLEAR, axes)
    # Each part that is left out is asked for again.
    for regex in axes:
        with pytest.raises(ValueError, match="axes: cannot tell"):
            ASKING[call](UNCLEAR, {key: axes[key] for key in axes if key != regex})


def test_the_guess_says_what_it_reads():
    leaves = {"stack/w": shaped(12, 4, 6), "scan/query/kernel": shaped(5, 64, 4, 8)}
    leaves |= {"wide/kernel": shaped(3, 64, 32), "attn/o_proj/w": shaped(4, 8, 32)}
    with pytest.raises(ValueError) as error:
        all_axes(None, leaves | {"query/kernel": shaped(16, 64, 8)})
    for line in (
        r'r"^stack/w$": "flax_stacked",  # (12, 4, 6): 12 stacked, 4 inputs, 6 outputs',
        r'r"^wide/kernel$": "flax",  # (3, 64, 32): 3 spatial, 64 inputs, 32 outputs',
        r'r"^query/kernel$": "qkv",  # (16, 64, 8): 16 inputs, 64 x 8 outputs',
        r'r"^attn/o_proj/w$": "attention_out",  # (4, 8, 32): 4 x 8 inputs, 32 outputs',
    ):
        assert line in str(error.value)
    assert "scan" not in str(error.value)


def test_one_axis_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"'b' with shape \(5,\).*leave it dense with prunable="):
        all_axes(None, {"b": shaped(5)})


def test_no_leaf_says_why_of_each_and_the_largest_first():
    """The regression of one number on one number: no kernel has two axes longer than 1."""
    params = {
        "first": {"kernel": jnp.ones((1, 32)), "bias": jnp.ones(32)},
        "last": {"kernel": jnp.ones((32, 1)), "bias": jnp.ones(1)},
        "count": jnp.int32(0),
    }
    with pytest.raises(ValueError) as error:
        jaxsparse.rigl(SGD, 0.5, key=0).init(params)
    text = str(error.value)
    for told in (
        "matches none of the 5 array leaves (first/bias (32,): named bias; first/kernel (1, 32): "
        "fewer than two axes longer than 1; last/kernel (32, 1): fewer than two axes",
        "count (): not a floating array",
        "last/bias (1,): named bias",
        "pass prunable=",
    ):
        assert told in text
    with pytest.raises(ValueError, match=r"first/kernel \(1, 32\): prunable= leaves it out"):
        jaxsparse.distributions.uniform(params, 0.5, prunable=lambda path, leaf: False)
    many = {f"layer{i}": {"bias": jnp.ones(3)} for i in range(20)}
    with pytest.raises(ValueError, match=r"none of the 20 .*; \.\.\.\)"):
        jaxsparse.distributions.uniform(many, 0.5)


def test_a_sparsity_for_a_dense_leaf_is_a_note_and_no_error():
    params = {name: {"kernel": jnp.ones(s)} for name, s in {"a": (1, 32), "b": (32, 8)}.items()}
    with pytest.warns(UserWarning, match=r"'a' finds only.*a/kernel \(fewer than two axes longer"):
        found = jaxsparse.prune(params, {"a": 0.5, "b": 0.75})
    assert found["a"]["kernel"].all() and int(found["b"]["kernel"].sum()) == 64
    for wrong in ({"a": 0.5}, {"c": 0.5, "b": 0.75}, {".*": 0.5, "b": 0.75}):
        with pytest.raises(ValueError, match="sparsity: "):
            jaxsparse.prune(params, wrong)


def test_masks_in_the_place_of_a_sparsity():
    masks = {"fc": {"kernel": jnp.ones((4, 6), bool)}}
    for call in (jaxsparse.fixed, jaxsparse.fixed_rule):
        arguments = (SGD, masks) if call is jaxsparse.fixed else (masks,)
        with pytest.raises(TypeError, match="pass masks=") as error:
            call(*arguments)
        assert len(str(error.value)) < 200


def test_the_choice_is_logged_once(caplog):
    params = {
        "narrow": {"kernel": jnp.ones((1, 7))},
        **{f"block{i}": {"kernel": jnp.ones((7, 5)), "bias": jnp.ones(5)} for i in range(3)},
    }
    tx = jaxsparse.rigl(SGD, 0.5, key=0)
    tx.init(params)
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="jaxsparse"):
        tx.init(params)
        tx.init(params)
        jaxsparse.prune(params, 0.5)
    assert caplog.messages == [
        "sparse (2 axes longer than 1): block*/kernel x 3\n"
        "dense (named bias): block*/bias x 3\n"
        "dense (fewer than two axes longer than 1): narrow/kernel"
    ]


def test_summary_says_why_of_every_leaf():
    params = {
        "embed": {"weight": jnp.ones((9, 4))},
        "fc": {"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "head": {"weight": jnp.ones((3, 4))},
        "ln": {"weight": jnp.ones((3, 4))},
        "step": jnp.int32(3),
    }

    def reasons(**options):
        def chosen(path, leaf):
            return jaxsparse.default_prunable(path, leaf) and path != "head/weight"

        masks = jaxsparse.prune(params, 0.5, prunable=chosen)
        lines = jaxsparse.summary(params, masks, **options).splitlines()[1:-2]
        return {line.split()[0]: line.split("  ")[-1] for line in lines}

    assert reasons() == {
        "embed/weight": "dense: of an embedding, embed",
        "fc/bias": "dense: named bias",
        "fc/weight": "sparse: 2 axes longer than 1",
        "head/weight": "sparse: 2 axes longer than 1, nothing pruned",
        "ln/weight": "dense: of a norm, ln",
        "step": "dense: not a floating array",
    }
    own = reasons(prunable=lambda path, leaf: path == "fc/weight")
    assert own.pop("fc/weight") == "sparse: prunable= says so"
    assert own.pop("step") == "dense: not a floating array"
    assert set(own.values()) == {"dense: prunable= leaves it out"}
