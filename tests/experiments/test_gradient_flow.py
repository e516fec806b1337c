"""The study of gradient flow as its user meets it: files, starting points, measurements."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments.common.models.network import trained
from experiments.common.study import engine
from experiments.common.study.content import read_arrays, read_results
from experiments.common.study.lab import Site
from experiments.common.training import execution
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.gradient_flow import analyses, cells, claims, lab, settings
from experiments.gradient_flow.settings import METHODS, PRESETS, SHARED

TRAINED = ("dense", "scratch", "scratch_plus", "rigl", "prune", "ticket")
SMALL = ["--scale", "0.05", "--seeds", "2", "--analyses", "agreement,distances,lines"]
SMALL += ["--method", ",".join((*TRAINED, *SHARED))]
FILES = {
    *("config.json", "curves.npz", "map.png", "norms.png", "report.html", "results.json"),
    *("solutions.npz", "summary.json", "table.md"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small study."""
    folder = tmp_path_factory.mktemp("study") / "small"
    gradient_flow.main([*SMALL, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def made(finished):
    """What trained and measured it."""
    chosen = settings.scaled(PRESETS["digits"], 0.05)
    return lab.build(chosen, Site(execution.replicate_keys(0, 2), finished))


def test_the_files_of_a_study(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["missing_cells"] == 0
    assert set(summary["methods"]) == set(TRAINED) and set(summary["shared"]) == set(SHARED)
    for found in summary["methods"].values():
        for name in ("test_accuracy", "initial_gradient_norm", "final_gradient_norm"):
            assert found[name]["n"] == 2 and np.isfinite(found[name]["mean"])


def test_every_method_begins_where_it_says(made):
    dense, masks = made.new(0), cells.stored(made, "prune/masks")
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    starts = {name: cells.starting_point(made, name) for name in (*METHODS, *SHARED)}
    alive = flat(masks)
    for name in ("ticket", "scratch", "scratch_plus", "set", "set_plus", "rigl", "rigl_plus"):
        params, own = starts[name]
        assert np.array_equal(flat(own), alive)
        assert not flat(params)[~alive].any()
    assert np.array_equal(flat(starts["ticket"][0]), np.where(alive, flat(dense), 0))
    assert not np.array_equal(flat(starts["scratch"][0]), flat(starts["ticket"][0]))
    for one, other in (("scratch", "set"), ("set", "rigl"), ("scratch_plus", "rigl_plus")):
        assert np.array_equal(flat(starts[one][0]), flat(starts[other][0]))
    for name in ("snip", "grasp"):
        own = starts[name][1]
        counts = [jax.tree.map(lambda m: int(m[r].sum()), own) for r in (0, 1)]  # noqa: B023
        assert counts[0] == counts[1] == jax.tree.map(lambda m: int(m[0].sum()), masks)
        assert not np.array_equal(flat(own), alive)
    total = sum(jax.tree.leaves(counts[0]))
    for name in ("snip_global", "grasp_global", "synflow"):
        own = jax.tree.map(lambda m: m.sum(axis=range(1, m.ndim)), starts[name][1])
        found = np.stack(jax.tree.leaves(own))
        assert abs(found.sum(0) - total).max() <= 1  # the layers round one by one
        assert (found != np.array(jax.tree.leaves(counts[0]))[:, None]).any()
    for name in SHARED:
        params, own = starts[name]
        same = jax.tree.map(lambda leaf: bool((leaf[0] == leaf[1]).all()), (params, own))
        assert all(jax.tree.leaves(same[1]))
        assert all(jax.tree.leaves(same[0])) == (name != "shared_scratch_new")


def test_grasp_is_scored_at_its_temperature(made):
    """The logits are divided by 200, as in the published code."""
    params = jax.tree.map(lambda leaf: leaf[0], made.new(0))
    inputs, labels = made.scoring()
    apply = trained(made.networks["large"])

    def masks(temperature, scope):
        def loss(p, batch):
            logits = apply(p, batch[0]) / temperature
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], 1).mean()

        scores = jaxsparse.grasp(loss, params, [(inputs, labels)])
        found = jaxsparse.prune(scores, made.settings.sparsity, scope=scope)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])

    for name, scope in (("grasp", "layer"), ("grasp_global", "global")):
        own = cells.starting_point(made, name)[1]
        got = np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(own)])
        assert (got != masks(200.0, scope)).mean() < 1e-3 < (got != masks(1.0, scope)).mean()


def test_gradient_norms_against_numpy(made, finished):
    """The ends of every curve are the norms of the masked gradient at start and end."""
    curves = read_arrays(finished / "curves.npz")
    results = read_results(finished)
    examples = made.measured()
    for name in ("ticket", "dense"):
        params, masks = cells.starting_point(made, name)
        for r in (0, 1):
            one = jax.tree.map(lambda leaf: leaf[r], (params, masks))  # noqa: B023
            grads = jax.grad(made.loss)(one[0], examples)
            square = 0.0
            for path, g in jax.tree.leaves_with_path(grads):
                g = np.asarray(g, np.float64)
                if one[1] is not None:
                    g = g * np.asarray(dict(jax.tree.leaves_with_path(one[1]))[path])
                square += (g**2).sum()
            np.testing.assert_allclose(curves[f"{name}/all"][r, 0], np.sqrt(square), rtol=1e-4)
            assert results[name]["initial_gradient_norm"][r] == curves[f"{name}/all"][r, 0]
    chosen = made.settings
    points = (chosen.iterations - 1) // chosen.measure + 2
    for name in (*TRAINED, *SHARED):
        assert curves[f"{name}/all"].shape == (2, points)
        assert np.isfinite(curves[f"{name}/all"]).all()


def test_lines_end_in_the_solutions_bit_for_bit(made, finished):
    found = read_results(finished)["lines"]
    at = found["alphas"]
    assert len(at) == 29 and at[0] == -0.2 and at[-1] == 1.2
    examples = analyses.landscape(made)
    for name in analyses.ENDS:
        losses = found["losses"][name.removeprefix("shared_")]
        for r in (0, 1):
            pruning = cells.shared_replicate(made) if name.startswith("shared_") else r
            for alpha, solution, of in ((0.0, name, r), (1.0, "prune", pruning)):
                params = jax.tree.map(lambda leaf: leaf[of], cells.stored(made, solution))  # noqa: B023
                loss = jax.jit(lambda p: analyses.loss(made, p, examples))(params)
                np.testing.assert_allclose(losses[r][at.index(alpha)], loss, rtol=1e-6)


def test_the_shared_group_stands_around_the_first_replicate_that_learns(made, monkeypatch):
    for scratch, first in (([0.1, 0.96], 1), ([0.96, 0.1], 0), ([0.95, 0.96], 0), ([0.1, 0.1], 0)):
        found = {"scratch": {"test_accuracy": scratch}, "prune": {"test_accuracy": [0.98, 0.98]}}
        monkeypatch.setattr(cells, "read_results", lambda path, found=found: found)
        assert cells.shared_replicate(made) == first
        tree = {"w": jnp.array([[3.0], [5.0]])}
        assert cells.shared(made, tree)["w"].tolist() == [[(3.0, 5.0)[first]]] * 2


def test_the_penalty_is_that_of_kernels_alone():
    """The penalty d * sum(w^2) adds 2 * d * w to the gradient."""
    chosen = PRESETS["lenet_5"]
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    tx = settings.method(chosen, "dense", 0, None)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert not updates["bias"].any()
    expected = -chosen.learning_rate * 2 * chosen.weight_decay * 3
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)
    options = gradient_flow.Options(preset="lenet_5", weight_decay=0.0)
    identity = gradient_flow.prepare(options).identity
    assert identity["weight_decay"] == identity["scored_weight_decay"] == 0


def test_the_rate_rises_to_its_peak_and_falls():
    chosen = settings.scaled(PRESETS["vgg_16_thin"], 0.1)
    assert (chosen.warmup, chosen.iterations) == (59, 1172)
    tx = settings.method(dataclasses.replace(chosen, weight_decay=0.0), "dense", 0, None)
    grads = {"kernel": jnp.ones((2, 2))}

    def step(state, _):
        updates, state = tx.update(grads, state, grads)
        return state, updates["kernel"][0, 0]

    sizes = -np.asarray(jax.lax.scan(step, tx.init(grads), None, chosen.iterations)[1])
    rates = sizes / (1 - 0.9 ** np.arange(1, chosen.iterations + 1)) * 0.1  # of constant gradients
    assert rates[0] == 0 and rates.argmax() == 59 and rates[-1] < 1e-6
    np.testing.assert_allclose(rates[[30, 59]], [0.05 * 30 / 59, 0.05], rtol=1e-5)


def test_masks_after_an_update_have_the_counts_of_those_before(made):
    params, masks = (
        jax.tree.map(lambda leaf: leaf[0], tree) for tree in cells.starting_point(made, "rigl")
    )
    grads = jax.grad(made.loss)(params, made.scoring())
    for kind in ("set", "rigl"):
        after = lab.next_masks(
            made.settings, kind, jnp.int32(made.settings.every), params, masks, grads, made.keys[0]
        )
        pairs = list(zip(jax.tree.leaves(masks), jax.tree.leaves(after), strict=True))
        assert all(int(a.sum()) == int(b.sum()) for a, b in pairs)
        assert any(bool((a != b).any()) for a, b in pairs)


def test_a_killed_study_goes_on_in_the_middle_of_a_method_with_the_same_numbers(
    finished, tmp_path, monkeypatch, call
):
    make, calls, last = lab.build, [], 4

    def dying(*args):
        made = make(*args)

        def trainer(algorithm, size):
            one = made.trainer(algorithm, size)

            def advance(state, start, stop):
                calls.append((algorithm, start))
                if [name for name, _ in calls].count("prune") == last:
                    raise KeyboardInterrupt
                return one.advance(state, start, stop)

            return one._replace(advance=advance)

        return made._replace(trainer=trainer)

    monkeypatch.setattr(lab, "build", dying)
    args = ["--scale", "0.05", "--seeds", "2", "--method", "dense,prune", "--analyses", ""]
    args += ["--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(engine, "CHUNK_SECONDS", 0.0)
        code, _, err = call(gradient_flow.main, *args)
    assert code == 130 and "continues from here" in err
    assert set(read_results(tmp_path)) == {"dense"} and (tmp_path / "unfinished").exists()
    begun, calls[:], last = calls[-1], [], 0
    assert begun[1] > 0
    code, _, _ = call(gradient_flow.main, *args)
    assert code == 0 and calls[0] == begun
    numbers = [read_results(folder) for folder in (tmp_path, finished)]
    for name in ("dense", "prune"):
        one, other = ({**found[name], "seconds": 0, "command": ""} for found in numbers)
        assert one == other
    for file in ("curves.npz", "solutions.npz"):
        one, other = (read_arrays(folder / file) for folder in (tmp_path, finished))
        mine = {name for name in other if name.startswith(("dense/", "prune/"))}
        assert set(one) == mine
        for name in mine:
            np.testing.assert_array_equal(one[name], other[name])
    assert not (tmp_path / "unfinished").exists()


def test_a_finished_study_is_drawn_anew_without_training(finished, monkeypatch, call):
    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(lab, "build", never)
    code, out, _ = call(gradient_flow.main, *SMALL, "--out", str(finished))
    assert code == 0 and "What the solutions have in common" in out


def test_spectra_are_named_by_method_and_step():
    chosen = PRESETS["digits"]
    found = analyses.names(chosen, ("signal", "spectra"))
    steps = (0, *chosen.snapshots, chosen.iterations)
    assert found[0] == "signal" and len(found) == 1 + len(cells.WATCHED) * len(steps)
    assert f"spectrum-rigl-{chosen.iterations}" in found


def test_the_barrier_is_measured_between_the_ends():
    alphas = analyses.ALPHAS.tolist()
    losses = [[9.0 if a < 0 or a > 1 else 1.0 + (a == 0.5) for a in alphas]] * 2
    results = {
        "lines": {"alphas": alphas, "dense_initial_loss": [4.0, 4.0], "losses": {"ticket": losses}}
    }
    config = {"model": "lenet_5", "dataset": "mnist"}
    found = {row[0]: row[2] for row in claims.claims(results, config)[1]}
    text = found["barrier on the line from ticket to prune"]
    assert text.startswith("1.000 ± 0.000, 25.0% of the dense initial loss")


BAD = [
    (["--scale", "0"], "--scale must leave at least"),
    (["--analyses", "magic"], "--analyses must be among"),
    (["--method", "magic"], "--method must be among"),
    (["--method", "dense,set", "--analyses", ""], "--method set needs --method prune too"),
    (
        ["--method", "prune,shared_ticket", "--analyses", ""],
        "--method shared_ticket needs --method scratch too",
    ),
    (["--method", "dense", "--analyses", "spectra"], "--analyses spectra needs --method scratch"),
    (["--seeds", "1"], "--seeds must be at least 2"),
    (["--weight-decay", "-1"], "--weight-decay must be at least 0"),
    (["--examples", "100"], "the measurements need"),
    (["--preset", "lenet_6"], "--preset"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(args, message, tmp_path, call):
    code, _, err = call(gradient_flow.main, *args, "--out", str(tmp_path / "out"))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
