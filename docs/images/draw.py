"""Draws the pictures of the concepts page and of the methods' pages: `python -m docs.images.draw`.

The curves of the methods come from docs/results; nothing is measured here. The concepts are shown
on a network that learns the digits of scikit-learn, in half a minute on two cores.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

import jaxsparse
from experiments.common.report.looks import DENSE, LOOKS
from jaxsparse import plot

matplotlib.use("agg")
plt.rcParams |= {"svg.hashsalt": "jaxsparse", "svg.fonttype": "none", "font.size": 10}
HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
GREY = "#C8C8C8"
NETWORKS = {"lenet_5": "LeNet-5, 5% of the weights", "lenet_300_100": "LeNet-300-100, 2%"}


def save(figure, name):
    figure.savefig(HERE / name, dpi=110, metadata={"Date": None} if name.endswith("svg") else None)
    plt.close(figure)


def run(tx, steps, look_every):
    """Trains on the digits; what it kept of the run, one entry for every look."""
    digits = load_digits()
    inputs, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    sizes = [64, 128, 128, 10]
    params = {
        f"fc{i}": {
            "kernel": jax.random.normal(jax.random.key(i), shape) * (2 / shape[0]) ** 0.5,
            "bias": jnp.zeros(shape[1]),
        }
        for i, shape in enumerate(zip(sizes, sizes[1:], strict=False), start=1)
    }

    def loss(params, x, y):
        for layer in list(params.values())[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ params["fc3"]["kernel"] + params["fc3"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, opt_state, key):
        rows = jax.random.randint(key, (64,), 0, 1400)
        grads = jax.grad(loss)(params, inputs[rows], labels[rows])
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = jaxsparse.init(tx, params)
    history = [opt_state]
    for i in range(steps):
        params, opt_state = step(params, opt_state, jax.random.key(i))
        if (i + 1) % look_every == 0:
            history.append(opt_state)
    return params, history


def draw_masks_and_moves():
    adam = optax.adam(3e-3)
    params, rigl = run(jaxsparse.rigl(adam, 0.9, key=0, every=25, stop=750), 1000, 25)
    save(plot.mask_image(rigl[-1], image=(8, 8)), "concept_mask.png")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    plot.churn_over_time(rigl, ax=left, label="RigL")
    _, moving = run(jaxsparse.sparse_momentum(adam, 0.9, key=0, every=25, stop=750), 1000, 25)
    plot.churn_over_time(moving, ax=left, label="sparse momentum")
    plot.density_per_layer(moving, range(0, 1001, 25), ax=right)
    left.set_title("mask updates move fewer and fewer weights", fontsize=10)
    right.set_title("sparse momentum moves them between layers", fontsize=10)
    save(figure, "concept_moves.svg")

    figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    for name in ("uniform", "erdos_renyi", "erk"):
        drawn = jaxsparse.random_masks(
            0, params, 0.9, distribution=getattr(jaxsparse.distributions, name)
        )
        plot.density_per_layer(drawn, ax=ax, label=name)
    save(figure, "concept_distributions.svg")


def draw_patterns():
    kernel = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
    patterns = {
        "unstructured": jaxsparse.unstructured,
        "n_m(2, 4)": jaxsparse.n_m(2, 4),
        "block(4, 4)": jaxsparse.block(4, 4),
        "channel": jaxsparse.channel,
        "fan_in": jaxsparse.fan_in,
    }
    masks = {
        name: jaxsparse.prune_by_magnitude(kernel, 0.5, pattern=pattern, axes="flax")["kernel"]
        for name, pattern in patterns.items()
    }
    save(plot.mask_image(masks, axes="flax"), "concept_patterns.png")


def draw_schedules():
    steps = range(0, 1001, 10)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.8), layout="constrained")
    cubic = jaxsparse.schedules.cubic(0.9, start=100, stop=750)
    cosine = jaxsparse.schedules.cosine(0.3, stop=750)
    left.plot(steps, [float(cubic(t)) for t in steps], color=LOOKS["gradual"].colour)
    right.plot(steps, [float(cosine(t)) for t in steps], color=LOOKS["rigl"].colour)
    left.set_title("gradual pruning: sparsity, a cubic", fontsize=10)
    right.set_title("RigL: share of weights that move, a cosine", fontsize=10)
    for ax in (left, right):
        plot.plain(ax)
        ax.set(xlabel="step", ylim=(0, None))
    save(figure, "concept_schedules.svg")


def measured(folder):
    return json.loads((RESULTS / folder / "summary.json").read_text())["methods"]


def percent(cell):
    """Mean and standard error of the test error."""
    found = cell["test_accuracy"]
    return 100 - 100 * found["mean"], 100 * found["standard_error"]


def draw_methods():
    """Test error against density, one method at a time before all others."""
    found = measured("sparse_momentum/lenet_300_100") | measured("sparse_momentum/deep_rewiring")
    dense, _ = percent(found.pop("dense")["0.0"])
    curves = {
        name: [(1 - float(s), *percent(cells[s])) for s in cells] for name, cells in found.items()
    }
    for name in curves:
        draw_method(name, curves, dense, [1, 2, 3, 4, 5, 10], [2, 5, 10, 20, 50])


def draw_srigl():
    """The same for SRigL, which another study has trained."""
    found = json.loads((RESULTS / "compare/mnist/results.json").read_text())
    dense, _ = percent(found.pop("dense"))
    curves = {}
    for cell, measures in found.items():
        name, sparsity = cell.rsplit("-", 1)
        curves.setdefault(name, []).append((1 - float(sparsity), *percent(measures)))
    draw_method("srigl", curves, dense, [2, 5, 10], [1.5, 2, 3, 4])


def draw_method(name, curves, dense, densities, errors):
    """One method before all others.

    Args:
      name: of the method.
      curves: `[(density, test error, its standard error)]` by method.
      dense: test error of the dense network.
      densities, errors: the ticks, in percent.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    plot.plain(ax)
    for other, curve in sorted(curves.items(), key=lambda item: item[0] == name):
        look = {"color": GREY, "lw": 1.2}
        if other == name:
            look = {"color": LOOKS[name].colour, "lw": 2.2, "marker": "o", "ms": 5}
        ax.errorbar(*zip(*curve, strict=True), **look)
    ax.plot([], [], color=LOOKS[name].colour, lw=2.2, marker="o", label=LOOKS[name].label)
    ax.plot([], [], color=GREY, label="the other methods")
    ax.axhline(dense, color=DENSE, ls="--", lw=1.2, label="dense")
    ax.set(xscale="log", yscale="log", xlabel="living weights", ylabel="test error")
    ax.set_xticks([n / 100 for n in densities], [f"{n}%" for n in densities])
    ax.set_yticks(errors, [f"{n}%" for n in errors])
    ax.minorticks_off()
    ax.legend(frameon=False)
    save(figure, f"methods/{name}.svg")


def draw_pruning_before_training():
    figure, both = plt.subplots(1, 2, figsize=(8.6, 2.9), layout="constrained", sharey=True)
    names = ["grasp", "grasp_global", "snip", "snip_global", "synflow", "ticket", "prune"]
    for ax, (folder, title) in zip(both, NETWORKS.items(), strict=True):
        found = measured(f"gradient_flow/{folder}") | measured(f"gradient_flow/synflow_{folder}")
        for i, name in enumerate(names):
            error, spread = percent(found[name])
            ax.errorbar(error, i, xerr=spread, fmt="o", color=LOOKS[name].colour)
        ax.axvline(percent(found["dense"])[0], color=DENSE, ls="--", lw=1.2)
        plot.plain(ax)
        ax.set(xscale="log", xlabel="test error")
        ax.set_title(title, fontsize=10)
        ax.set_xticks([1, 2, 5, 10, 20, 50], ["1%", "2%", "5%", "10%", "20%", "50%"])
        ax.minorticks_off()
    both[0].set_yticks(range(len(names)), [LOOKS[name].label for name in names])
    save(figure, "methods/before_training.svg")


if __name__ == "__main__":
    draw_methods()
    draw_srigl()
    draw_pruning_before_training()
    draw_schedules()
    draw_patterns()
    draw_masks_and_moves()
