"""Pictures show the numbers that they are given, from masks, states and logs alike."""

import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import plot

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PARAMS = {
    "fc": {"kernel": jnp.ones((24, 6)), "bias": jnp.ones(6)},
    "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
}
MASKS = jaxsparse.random_masks(0, PARAMS, {"fc": 0.75, "conv": 0.5})


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def history():
    """The states of a short run, the first before any step."""
    tx = jaxsparse.rigl(optax.sgd(0.1), masks=MASKS, key=0, every=2)
    params, state = jaxsparse.init(tx, PARAMS)
    states, update = [state], jax.jit(tx.update)
    for step in range(5):
        grads = jax.tree.map(
            lambda p, s=step: jax.random.normal(jax.random.key(s), p.shape), params
        )
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return states


def shown(ax):
    return np.asarray(ax.get_images()[0].get_array())


@pytest.mark.parametrize("of", ["masks", "state"])
def test_a_mask_image_shows_the_masks(history, of):
    figure = plot.mask_image(MASKS if of == "masks" else history[0], image=(4, 6))
    pixels, conv, fc = figure.axes[:3]
    np.testing.assert_array_equal(shown(pixels), MASKS["fc"]["kernel"].sum(1).reshape(4, 6))
    assert conv.get_title() == "conv/kernel: 50% alive" and fc.get_title() == "fc/kernel: 25% alive"
    np.testing.assert_array_equal(shown(fc), MASKS["fc"]["kernel"])
    np.testing.assert_array_equal(shown(conv), MASKS["conv"]["kernel"].reshape(18, 4))
    assert (conv.get_ylabel(), conv.get_xlabel()) == ("18 taps", "4 outputs")


def test_axes_say_what_is_across():
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    (ax,) = plot.mask_image({"weight": mask}).axes  # Equinox: (out, in)
    np.testing.assert_array_equal(shown(ax), mask.T)
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("4 inputs", "3 outputs")
    (ax,) = plot.mask_image({"w": mask}).axes
    np.testing.assert_array_equal(shown(ax), mask)
    assert "last axis" in ax.get_xlabel()
    (ax,) = plot.mask_image({"w": mask}, axes="torch").axes
    np.testing.assert_array_equal(shown(ax), mask.T)


def test_densities_of_masks_states_and_numbers(history):
    for given in (MASKS, history[0], {"conv/kernel": 0.5, "fc/kernel": jnp.float32(0.25)}):
        ax = plot.density_per_layer(given, label="rigl")
        names = [text.get_text() for text in ax.get_yticklabels()]
        found = dict(zip(names, ax.get_lines()[0].get_xdata(), strict=True))
        assert found == {"conv/kernel": 0.5, "fc/kernel": 0.25}
        assert ax.get_legend().get_texts()[0].get_text() == "rigl"


def test_densities_over_the_steps(history):
    half = jaxsparse.random_masks(0, PARAMS, 0.5)
    ax = plot.density_per_layer([half, MASKS], steps=[0, 100])
    found = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert found == {"conv/kernel": [0.5, 0.5], "fc/kernel": [0.5, 0.25]}
    assert list(plot.density_per_layer(history, range(6)).get_lines()[1].get_ydata()) == [0.25] * 6


def test_axes_that_two_networks_share_show_both():
    ax = plot.density_per_layer({"fc": 0.1})
    plot.density_per_layer({"fc": 0.9}, ax=ax)
    assert ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 0.9
    ax = plot.churn_over_time([0.1, 0.2], [1, 2])
    plot.churn_over_time([0.7, 0.8], [1, 2], ax=ax)
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 0.8


def test_many_layers_share_one_scale_of_colours():
    many = {f"fc{i}": np.eye(4, dtype=bool) for i in range(12)}
    labels = [line.get_label() for line in plot.density_per_layer([many], [0]).get_lines()]
    assert labels[0] == "fc0" and labels[-1] == "fc9" and labels[1].startswith("_")


def test_churn_of_states_metrics_masks_and_numbers(history):
    logged = [jaxsparse.metrics(state) for state in history]
    masks = [jaxsparse.get_masks(state, PARAMS) for state in history]
    (states,), (metrics,) = (plot.churn_over_time(h).get_lines() for h in (history, logged))
    assert list(states.get_xdata()) == list(metrics.get_xdata()) == [2, 4]
    assert list(states.get_ydata()) == list(metrics.get_ydata()) and min(states.get_ydata()) > 0
    (moved,) = plot.churn_over_time(masks, steps=range(-1, 5), label="rigl").get_lines()
    found = dict(zip(moved.get_xdata(), moved.get_ydata(), strict=True))
    assert [step for step, churn in found.items() if churn] == [2, 4]
    np.testing.assert_allclose([found[2], found[4]], states.get_ydata(), rtol=1e-6)
    ax = plot.churn_over_time([0.5, 0.25], [1, 2], ax=moved.axes)
    assert list(ax.get_lines()[1].get_ydata()) == [0.5, 0.25]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plot.mask_image(MASKS, image=(5, 5)), "image must .* 'fc/kernel': 24"),
        (lambda: plot.mask_image(MASKS, image=(24,)), r"image must .* got \(24,\)"),
        (lambda: plot.density_per_layer([MASKS], [0, 1]), "steps must be as many as the 1"),
        (lambda: plot.churn_over_time([MASKS]), "steps must say when"),
        (lambda: plot.churn_over_time([0.5], steps=[]), "steps must be as many as the 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_parameters_are_no_masks():
    with pytest.raises(TypeError, match="boolean"):
        plot.mask_image(PARAMS)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (plot.mask_image, plot.density_per_layer):
        with pytest.raises(ImportError, match=r"pip install 'jaxsparse\[plot\]'"):
            draw(MASKS)
