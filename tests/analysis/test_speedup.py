"""The estimate of a speed-up against numbers counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.analysis import estimated_speedup, flops


def network():
    """A convolution of 3x3 taps from 4 to 5 channels and a head, with zeros counted by hand."""
    conv = np.zeros((3, 3, 4, 5), bool)
    conv[0, 0, 0] = True  # 5 of 180 weights; 2 of 4 input channels
    conv[:, 1, 2, 3] = True  # 3 more
    head = np.zeros((10, 2), bool)
    head[:5, 0] = True
    return {"conv": {"kernel": jnp.asarray(conv)}, "head": {"kernel": jnp.asarray(head)}}


def images():
    """Two images of 6x6x4 of which 5 of the 8 channels hold something, 1 pixel each."""
    x = np.zeros((2, 6, 6, 4), np.float32)
    for image, channel in ((0, 0), (0, 1), (0, 3), (1, 0), (1, 2)):
        x[image, channel, 2, channel] = -1.5
    return x


def test_weights_alone():
    found = estimated_speedup({"conv/kernel": 3.0, "head/kernel": 1.0}, network())
    assert found.layers["conv/kernel"] == pytest.approx((8 / 180, 2 / 4))
    assert found.layers["head/kernel"] == pytest.approx((5 / 20, 5 / 10))
    assert found.weights == pytest.approx(4 / (3 * 8 / 180 + 1 * 5 / 20))
    assert found.channels == pytest.approx(2)


def test_weights_and_inputs():
    read = {"conv/kernel": images(), "head/kernel": jnp.arange(20.0).reshape(2, 10)}
    found = estimated_speedup({"conv/kernel": 3.0, "head/kernel": 1.0}, network(), read)
    assert found.layers["conv/kernel"] == pytest.approx((8 / 180 * 5 / 288, 2 / 4 * 5 / 8))
    assert found.layers["head/kernel"] == pytest.approx((5 / 20 * 19 / 20, 5 / 10 * 19 / 20))
    left = 3 * (2 / 4 * 5 / 8) + 1 * (5 / 10 * 19 / 20)
    assert found.channels == pytest.approx(4 / left)


def test_costs_from_the_cost_model():
    """Without zeros in the inputs, densities and the FLOPs of living weights say the same."""
    masks = {"a": {"kernel": jnp.arange(32).reshape(4, 8) < 8}, "b": {"kernel": jnp.ones((8, 2))}}
    masks["b"]["kernel"] = masks["b"]["kernel"] > 0
    cost = flops(
        lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"],
        jax.tree.map(lambda mask: mask.astype(jnp.float32), masks),
        masks,
        jnp.ones((1, 4)),
    )
    dense = {path: leaf.dense for path, leaf in cost.leaves.items()}
    found = estimated_speedup(dense, masks)
    assert found.weights == pytest.approx(cost.dense / cost.sparse)
    assert found.channels == pytest.approx(96 / (64 * 1 / 4 + 32))


def test_axes_are_asked():
    mask = jnp.zeros((6, 3), bool).at[:, 0].set(True)
    by_axes = {axes: estimated_speedup({"w": 1}, {"w": mask}, axes=axes).channels for axes in AXES}
    assert by_axes == AXES
    with pytest.raises(ValueError, match="axes: cannot tell"):
        estimated_speedup({"w": 1}, {"w": mask})


AXES = {"equinox": 3.0, "flax": 1.0}


def test_nothing_left_is_infinitely_fast():
    found = estimated_speedup({"kernel": 1.0}, {"kernel": jnp.zeros((2, 2), bool)})
    assert found.weights == found.channels == np.inf


@pytest.mark.parametrize(
    ("dense", "inputs", "message"),
    [
        ({"fc/kernel": 1.0}, None, "dense: 'fc/kernel' has no mask; masks has conv/kernel, head"),
        ({"conv/kernel": 0.0}, None, "cost of 'conv/kernel' must be above 0, got 0.0"),
        ({"conv/kernel": np.nan}, None, "must be above 0, got nan"),
        ({"conv/kernel": 1.0}, {"head/kernel": 0}, "inputs: 'head/kernel' is not in dense"),
        ({"head/kernel": 1.0}, {"head/kernel": np.ones((2, 9))}, r"10\), got \(2, 9\)"),
        ({"head/kernel": 1.0}, {"head/kernel": np.ones(10)}, r"10\), got \(10,\)"),
    ],
)
def test_bad_arguments(dense, inputs, message):
    with pytest.raises(ValueError, match=message):
        estimated_speedup(dense, network(), inputs)
