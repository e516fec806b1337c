"""Variants of the methods, and the studies beside the main one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse
from experiments.common.study.content import read_arrays, read_finished
from experiments.common.training import evaluation
from experiments.sparse_momentum import __main__ as sparse_momentum
from experiments.sparse_momentum import report, settings, variants

SMALL = settings.Settings("lenet_300_100", "digits", 4, 24, (0.9,), drop_every=5)
PER_EPOCH = 3
PARAMS = {"fc": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)}}


def trained(tx):
    """The kernel after each of eleven steps with made-up gradients."""
    params, state = jaxsparse.init(tx, PARAMS)

    @jax.jit
    def run(params, state):
        def step(carry, key):
            params, state = carry
            grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
            updates, state = tx.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params["fc"]["kernel"]

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(1), 11))[1]

    return np.asarray(run(params, state))


def direct(name, **options):
    """The method made with the library alone."""
    when = {"every": PER_EPOCH, "start": PER_EPOCH, "stop": 12, "axes": "flax"}
    when = when if name != "deep_rewiring" else {"axes": "flax"}
    make = getattr(jaxsparse, name)
    return lambda inner: make(inner, sparsity=0.5, key=0, **when | options)


def cooling(temperature):
    """The noise of Mostafa & Wang's runs, here in 12 steps: it falls after 2, 5 and 8 of them."""
    falls = jnp.array([1.0] * 2 + [1e-3] * 3 + [1e-7] * 3 + [1e-10] * 4)
    return lambda count: jnp.sqrt(2 * 0.01 * temperature * falls[count])


CASES = {
    "sparse_momentum+momentum=0.6+prune_rate=0.3": (
        direct(
            "sparse_momentum",
            momentum=0.6,
            drop_fraction=jaxsparse.schedules.cosine(0.3, 12, 0.005),
        ),
        {"momentum": 0.6},
    ),
    "sparse_momentum+clip=0.5": (
        direct("sparse_momentum", drop_fraction=jaxsparse.schedules.cosine(0.5, 12, 0.005)),
        {"clip": 0.5},
    ),
    "rigl+prune_schedule=linear+period=0.67": (
        direct("rigl", every=2, start=2, drop_fraction=jaxsparse.schedules.linear(0.5, 12)),
        {},
    ),
    "dynamic_reparameterization+threshold=0.5+target=0.9": (
        direct("dynamic_reparameterization", threshold=0.5, target=0.9),
        {},
    ),
    "deep_rewiring+sign=free+temperature=2.5+l1=0.01+weight_decay=0.0": (
        direct("deep_rewiring", l1=0.01, sign="free", noise=cooling(2.5), stop=11),
        {"weight_decay": 0.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_variant_is_the_method_with_its_options(name):
    make, changed = CASES[name]
    got = trained(settings.method(SMALL, name, 0.5, 0, PER_EPOCH))
    want = trained(settings.optimizer(dataclasses.replace(SMALL, **changed), sparse=make))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    plain = trained(settings.method(SMALL, name.split("+")[0], 0.5, 0, PER_EPOCH))
    assert not np.allclose(got, plain)


def test_options_of_the_settings_give_way_to_those_of_the_variant():
    tuned = dataclasses.replace(SMALL, own={"rigl": {"prune_rate": 0.1, "accumulate": 2}})
    name = "rigl+prune_rate=0.5"
    got = trained(settings.method(tuned, name, 0.5, 0, PER_EPOCH))
    want = trained(settings.method(SMALL, f"{name}+accumulate=2", 0.5, 0, PER_EPOCH))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_clip_is_for_all_weights_together_and_inf_is_never():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    plain = dataclasses.replace(SMALL, weight_decay=0.0, momentum=0.0)
    clipped = dataclasses.replace(plain, clip=2.0)

    def update(chosen, name="dense"):
        tx = settings.method(chosen, name, 0.0, 0, PER_EPOCH)
        return tx.update(grads, tx.init(grads), grads)[0]

    for got in (update(clipped), update(plain, "dense+clip=2.0")):
        np.testing.assert_allclose(got["a"], [-0.1 * 3 * 2 / 5, 0.0], rtol=1e-6)
        np.testing.assert_allclose(got["b"], [-0.1 * 4 * 2 / 5], rtol=1e-6)
    for got in (update(clipped, "dense+clip=inf"), update(dataclasses.replace(plain, clip=5.1))):
        np.testing.assert_allclose(got["b"], [-0.4], rtol=1e-6)


def test_the_distribution_of_a_variant():
    params = {"a": {"kernel": jnp.ones((40, 30))}, "b": {"kernel": jnp.ones((30, 4))}}

    def masks(tx):
        return jaxsparse.get_masks(jaxsparse.init(tx, params)[1], params)

    got = masks(settings.method(SMALL, "fixed+distribution=erdos_renyi", 0.9, 0, PER_EPOCH))
    inner, chosen = settings.optimizer(SMALL), jaxsparse.erdos_renyi
    want = masks(jaxsparse.fixed(inner, sparsity=0.9, key=0, distribution=chosen))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, want))
    assert got["b"]["kernel"].mean() > 2 * got["a"]["kernel"].mean()


def test_variants_that_differ_in_floats_alone_share_a_program():
    programs = {study: {variants.program(n) for n in v} for study, v in variants.STUDIES.items()}
    assert {study: len(found) for study, found in programs.items()} == {
        "main": 0,
        "sensitivity": 4,
        "ablation": 14,
        "tuning": 3,
    }
    for names in variants.STUDIES.values():
        for name in names:
            settings.check(SMALL, name)


def test_tuning_never_looks_at_the_test_set(tmp_path, monkeypatch, call):
    def never(*_, **__):
        raise AssertionError("the test set was evaluated")

    monkeypatch.setattr(evaluation, "evaluate", never)
    names = [f"sparse_momentum+prune_rate={rate}" for rate in (0.2, 0.9)]
    args = ["--study", "tuning", "--method", ",".join(names), "--sparsity", "0.9"]
    args += ["--epochs", "4", "--seeds", "2", "--out", str(tmp_path)]
    code, out, _ = call(sparse_momentum.main, *args)
    assert code == 0 and "the test set was left alone" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [cell["method"] for cell in results.values()] == names
    assert all(set(cell) & {"test_accuracy"} == set() for cell in results.values())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["methods"][names[0]]["0.9"]) == {"validation_accuracy"}
    assert (tmp_path / "tuning.png").exists() and not (tmp_path / "error.png").exists()
    # One program trained both, each with its own prune rate.
    curves = read_arrays(tmp_path / "curves.npz")
    moved = [np.ptp(curves[f"{name}-0.9/density/fc1"], axis=1).mean() for name in names]
    assert moved[1] > 1.5 * moved[0] > 0
    assert np.isnan(curves[f"{names[0]}-0.9/test_accuracy"]).all()


def written(folder, study, cells):
    """The report of made-up results, and what it writes into `table.md`."""
    config = {"model": "lenet_300_100", "dataset": "digits", "epochs": 20, "steps": None}
    config |= {"batch_size": 24, "replicates": 2, "study": study}
    results = {
        name if sparsity == 0 else f"{name}-{sparsity}": {
            "method": name,
            "sparsity": sparsity,
            "test_accuracy": accuracies,
            "validation_accuracy": [0.1, 0.1],
            "seconds": 1.0,
        }
        for (name, sparsity), accuracies in cells.items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(results))
    report.report(read_finished(folder, list(results), "made up", "command"))
    return (folder / "table.md").read_text()


def test_the_report_of_sensitivity(tmp_path):
    cells = {
        ("sparse_momentum+momentum=0.5", 0.95): [0.9, 0.92],
        ("sparse_momentum+momentum=0.9", 0.95): [0.95, 0.95],
        ("dense+momentum=0.9", 0.0): [0.97, 0.99],
        ("sparse_momentum+prune_schedule=linear+prune_rate=0.2", 0.95): [0.5, 0.5],
    }
    text = written(tmp_path, "sensitivity", cells)
    assert "## Test accuracy against momentum\n\n|  | 0.5 | 0.9 |" in text
    assert "| sparse_momentum | 91.00 ± 1.00 % | 95.00 ± 0.00 % |" in text
    assert "| dense |  | 98.00 ± 1.00 % |" in text
    assert "## Test accuracy against prune_rate\n\n|  | 0.2 |" in text
    assert "| sparse_momentum+prune_schedule=linear | 50.00 ± 0.00 % |" in text
    assert (tmp_path / "sensitivity.png").exists()


def test_the_report_of_the_ablation(tmp_path):
    cells = {
        ("dense", 0.0): [0.98, 0.98],
        ("sparse_momentum", 0.95): [0.95, 0.97],
        ("sparse_momentum+growth=random", 0.95): [0.9, 0.9],
        ("sparse_momentum+redistribution=none", 0.95): [0.97, 0.97],
    }
    text = written(tmp_path, "ablation", cells)
    rows = [line for line in text.splitlines() if line.startswith("| sparse_momentum")]
    assert rows == [
        "| sparse_momentum+redistribution=none | 97.00 ± 0.00 % | 2 | +1.00 |",
        "| sparse_momentum | 96.00 ± 1.00 % | 2 |  |",
        "| sparse_momentum+growth=random | 90.00 ± 0.00 % | 2 | -6.00 |",
    ]
    assert (tmp_path / "ablation.png").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["methods"]["sparse_momentum"]["0.95"]["test_accuracy"]["mean"] == 0.96


def test_several_sparsities_are_told_apart(tmp_path):
    cells = {("sparse_momentum", s): [1 - s, 1 - s] for s in (0.9, 0.95)}
    text = written(tmp_path, "ablation", cells)
    assert "| sparse_momentum at 10% | 10.00 ± 0.00 % |" in text
    assert "| sparse_momentum at 5% | 5.00 ± 0.00 % |" in text


BAD = [
    ("magic", "--method must be among dense, fixed"),
    ("sparse_momentum+growth", "a variant is written method+option=value"),
    ("sparse_momentum+growth=magic", "growth must be one of momentum, random"),
    ("sparse_momentum+prune_schedule=magic", "prune_schedule must be one of cosine"),
    ("fixed+distribution=magic", "distribution must be one of uniform"),
    ("sparse_momentum+magic=1.0", "magic"),
    ("sparse_momentum+prune_rate=2.0", "got 2.0"),
    ("dense+growth=random", "dense has no option 'growth'"),
    ("fixed+prune_rate=0.2", "fixed has no option 'prune_rate'"),
    ("dense+clip=0", "clip must be a number above 0, got 0"),
    ("fixed+clip=magic", "clip must be a number above 0, got 'magic'"),
    ("rigl+temperature=0.2", "rigl has no option 'temperature'"),
]


@pytest.mark.parametrize(("name", "message"), BAD)
def test_bad_variants_are_one_line_and_write_nothing(name, message, tmp_path, call):
    args = ["--study", "ablation", "--method", name, "--out", str(tmp_path / "out")]
    code, _, err = call(sparse_momentum.main, *args)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
