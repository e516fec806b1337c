"""One table of methods and one vocabulary for all command lines; files keep their names."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import optax
import pytest

import benchmarks.sparse_momentum
import benchmarks.step
import jaxsparse
from experiments.common.study.options import differences, flag, identity, parse
from experiments.common.training.methods import METHODS, Method
from experiments.compare import __main__ as compare
from experiments.cost import __main__ as cost
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.language_model import __main__ as language_model
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.sparse_momentum import __main__ as sparse_momentum
from experiments.train import __main__ as train
from experiments.train.config import Config, resolve
from experiments.train.job import mask_updates

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STUDIES = {
    "cost": cost,
    "sparse_momentum": sparse_momentum,
    "language_model": language_model,
    "lottery_ticket": lottery_ticket,
    "gradient_flow": gradient_flow,
}
OPTIONS = {name: (study, study.Options) for name, study in STUDIES.items()}
OPTIONS |= {"train": (train, Config), "compare": (compare, compare.Options)}
BIASES_AT_ZERO = ("alexnet_b", "alexnet_s", "vgg_16_c", "vgg_16_d", "vgg_16_like", "wrn_16_8")
"""Of `sparse_momentum`, run before it knew how biases start, and what to clip."""


@pytest.fixture
def another(monkeypatch):
    """The name of a method that is in the table and nowhere else: SET once more."""
    when = ("every", "start", "stop", "drop_fraction")
    method = Method(jaxsparse.sparse_evolution, when, flops="sparse_evolution")
    monkeypatch.setitem(METHODS, "another", method)
    return "another"


def both(folder):
    """The cells of SET under its own name and under the other one."""
    results = json.loads((folder / "results.json").read_text())
    return results["sparse_evolution-0.9"], results["another-0.9"]


def test_a_method_of_the_table_is_trained_by_compare_and_by_train(another, tmp_path, call):
    small = ["--sparsity", "0.9", "--epochs", "1", "--seeds", "1", "--batch-size", "50", "--out"]
    code, out, error = call(
        compare.main, "--method", f"sparse_evolution,{another}", *small, str(tmp_path / "cells")
    )
    assert code == 0 and f"| {another} |" in out, error
    first, second = both(tmp_path / "cells")
    code, _, error = call(
        train.main, "--method", another, "--no-dense-twin", *small, str(tmp_path / "run")
    )
    assert code == 0, error
    run = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (first["algorithm"], second["algorithm"]) == ("sparse_evolution", another)
    for key in ("test_accuracy", "alive", "training_flops"):
        assert first[key] == second[key] == run[key]
    assert another in call(train.main, "--help")[1]


def test_a_method_of_the_table_is_trained_by_the_study_of_methods(another, tmp_path, call):
    args = ["--method", f"sparse_evolution,{another}", "--sparsity", "0.9", "--steps", "10"]
    code, out, error = call(
        sparse_momentum.main, *args, "--seeds", "1", "--out", str(tmp_path / "study")
    )
    assert code == 0 and f"| {another} |" in out, error
    first, second = both(tmp_path / "study")
    assert first["test_accuracy"] == second["test_accuracy"]
    assert f"{another}-0.95" in sparse_momentum.prepare(sparse_momentum.Options()).cells
    variant = sparse_momentum.Options(method=f"{another}+prune_rate=0.9+period=2")
    assert len(sparse_momentum.prepare(variant).cells) == 3
    assert another in benchmarks.step.variants(optax.identity(), 2)


def test_the_methods_that_are_compared_are_those_of_finished_folders():
    study = compare.Options()
    assert study.method == "fixed,gradual,sparse_evolution,rigl,sparse_momentum"
    assert list(METHODS)[1:6] == study.method.split(",")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_without_time_for_a_mask_update_is_refused_where_masks_move(name):
    config, moves = resolve(Config(method=name)), name not in ("dense", "fixed", "deep_rewiring")
    assert METHODS[name].moves == moves
    if moves:
        with pytest.raises(ValueError, match="no mask update"):
            mask_updates(config, 10)
    else:
        mask_updates(config, 10)


OLD = [
    (main.main, flag(field.metadata["was"]), flag(field.name))
    for main, options in OPTIONS.values()
    for field in dataclasses.fields(options)
    if field.metadata["was"]
]


def test_the_options_that_had_another_name():
    assert {(old, new) for _, old, new in OLD} == {
        ("--algorithm", "--method"),
        ("--algorithms", "--method"),
        ("--methods", "--method"),
        ("--controls", "--method"),
        ("--sparsities", "--sparsity"),
        ("--densities", "--sparsity"),
        ("--replicates", "--seeds"),
    }
    for _, options in OPTIONS.values():
        names = {field.name for field in dataclasses.fields(options)}
        assert {"method", "seeds", "seed"} <= names


@pytest.mark.parametrize(("main", "old", "new"), OLD)
@pytest.mark.parametrize("form", ["{} 3", "{}=3", "{}"])
def test_an_old_option_is_answered_with_the_new_one(main, old, new, form, tmp_path, call):
    out = tmp_path / "out"
    code, printed, error = call(main, *form.format(old).split(), "--out", str(out))
    assert (code, printed) == (2, "") and not out.exists()
    more = "; a sparsity is 1 - density, such as 0.95 for 0.05" if old == "--densities" else ""
    assert error == f"error: {old} is called {new} now{more}\n"


@pytest.mark.parametrize(
    ("main", "old", "new"),
    [
        (benchmarks.step.main, "--methods", "--method"),
        (benchmarks.sparse_momentum.main, "--methods", "--method"),
        (benchmarks.sparse_momentum.main, "--network", "--preset"),
    ],
)
def test_an_old_option_of_a_benchmark_too(main, old, new, call, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", old, "dense"])
    assert call(lambda _: main(), None) == (2, "", f"error: {old} is called {new} now\n")


def test_help_says_the_new_names_only(call):
    for main, old, new in OLD:
        described = call(main, "--help")[1]
        assert re.search(rf"{new}\b", described) and not re.search(rf"{old}\b", described)


def test_a_seed_is_stored_where_it_is_given():
    """Folders of `compare` from before it had a seed are accepted."""
    assert "seed" not in identity(compare.Options())
    assert identity(compare.Options(seed=3))["seed"] == 3
    assert {config.seed for config in compare.cells(compare.Options(seed=3))} == {3}


TABLES = sorted(RESULTS.rglob("table.md"))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: str(file.parent.relative_to(RESULTS)))
def test_the_command_of_a_published_table_is_that_of_its_folder(file):
    made_by = r"Made by `python -m experiments\.(\w+)([^`]*)`"
    name, args = re.search(made_by, file.read_text()).groups()
    main, kind = OPTIONS[name]
    options = parse(kind, main.PROG, shlex.split(args))
    wanted = identity(options) if main is compare else main.prepare(options).identity
    stored = json.loads((file.parent / "config.json").read_text())
    other = [text.split()[0] for text in differences(stored, json.loads(json.dumps(wanted)))]
    early = name == "sparse_momentum" and file.parent.name in BIASES_AT_ZERO
    assert other == (["initialization", "clip"] if early else [])
