"""Damaged and missing files of a run: one line that names the file, and nothing else is touched."""

import json
import shutil

import numpy as np
import pytest

from experiments.common import files
from experiments.common.report.tables import statistics
from experiments.common.study.content import read_results, write_arrays
from experiments.common.study.folder import RunFolder
from experiments.common.study.options import identity
from experiments.compare import __main__ as compare
from experiments.gradient_flow import __main__ as gradient_flow
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.sparse_momentum import __main__ as sparse_momentum
from experiments.train import __main__ as train
from experiments.train import measures

JOB = ["--epochs", "4", "--seeds", "1", "--batch-size", "200", "--method", "fixed"]
JOB += ["--no-dense-twin", "--checkpoint-every", "0"]
COMPARE = ["--method", "fixed", "--sparsity", "0.5"]
STUDIES = {
    "lottery_ticket": (lottery_ticket, "ticket-00", ("curves.npz", "masks.npz")),
    "sparse_momentum": (sparse_momentum, "fixed-0.9", ("curves.npz",)),
    "gradient_flow": (gradient_flow, "rigl", ("curves.npz", "solutions.npz")),
}
SUMMARY = dict.fromkeys(measures.SUMMARY, 0.5) | {"test_accuracy": statistics([0.5])}
SUMMARY |= dict.fromkeys(("dataset", "dataset_description", "model", "algorithm"), "digits")
SUMMARY |= {"dense": None}


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped": flip,
    "a list": lambda file: file.write_text("[]"),
    "no object": lambda file: file.write_text("3"),
    "without keys": lambda file: file.write_text("{}"),
}
JSON = ("empty", "truncated", "flipped", "a list", "no object")


def wrong(*keys, value):
    """A damage: another value at a place in a JSON file."""

    def damage(file):
        found = json.loads(file.read_text())
        place = found
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        file.write_text(json.dumps(found))

    return damage


def refused(call, main, args, folder, name):
    before = contents(folder)
    code, _, err = call(main, *args, "--out", str(folder))
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(folder / name) in err or f"{name} " in err, err
    assert any(word in err for word in ("delete", "choose", "put a whole copy back")), err
    assert contents(folder) == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was stopped near its end, and that of the same one, finished."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            train.main([*JOB, "--out", str(path / "stopped")])
    shutil.copytree(path / "stopped", path / "finished")
    train.main([*JOB, "--out", str(path / "finished"), "--resume"])
    return path


@pytest.fixture
def stopped(whole, tmp_path):
    return shutil.copytree(whole / "stopped", tmp_path / "run")


def newest(folder, number=-1):
    return sorted((folder / "checkpoints").iterdir(), key=lambda p: int(p.name))[number]


def largest(checkpoint):
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["missing", *JSON, "without keys"])
def test_config(call, stopped, damage):
    DAMAGES[damage](stopped / "config.json")
    name = "" if damage == "without keys" else "config.json"
    refused(call, train.main, [*JOB, "--resume"], stopped, name)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_metrics(call, stopped, damage):
    DAMAGES[damage](stopped / "metrics.jsonl")
    refused(call, train.main, [*JOB, "--resume"], stopped, "metrics.jsonl")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
@pytest.mark.parametrize("which", ["largest", "checksums.json", "state/manifest.ocdbt"])
def test_no_checkpoint_is_whole(call, stopped, damage, which):
    for number in (-2, -1):
        checkpoint = newest(stopped, number)
        file = largest(checkpoint) if which == "largest" else checkpoint / which
        DAMAGES[damage](file)
    refused_with = "checkpoints" if (damage, which) == ("missing", "checksums.json") else file.name
    before = contents(stopped)
    code, _, err = call(train.main, *JOB, "--out", str(stopped), "--resume")
    assert code == 1 and err.count("\n") == 1 and refused_with in err and "delete" in err
    kept = {path: content for path, content in before.items() if "checkpoints" not in path.parts}
    assert kept.items() <= contents(stopped).items()


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_the_folder_of_checkpoints(call, stopped, what):
    shutil.rmtree(stopped / "checkpoints")
    if what == "a file":
        (stopped / "checkpoints").write_text("")
    refused(call, train.main, [*JOB, "--resume"], stopped, "checkpoints")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(call, whole, stopped):
    flip(largest(newest(stopped)))
    before = newest(stopped, -2).name
    code, out, err = call(train.main, *JOB, "--out", str(stopped), "--resume")
    assert code == 0 and err == ""
    lines = " ".join(out.split())
    assert lines.count("is damaged") == 1 and "Continuing from the checkpoint before." in lines
    assert f"Continuing from step {before}." in lines
    for name in ("metrics.jsonl", "summary.json"):
        one, other = ((folder / name).read_text() for folder in (stopped, whole / "finished"))
        assert one.split('"seconds"')[0] == other.split('"seconds"')[0]


def test_what_reads_back_otherwise_is_no_checkpoint(call, tmp_path, monkeypatch):
    from experiments.common.study import checkpoints

    read = checkpoints.Checkpoints._read_arrays

    def faulty(self, number, like):
        arrays = read(self, number, like)
        arrays[next(iter(arrays))] = np.zeros(3)
        return arrays

    monkeypatch.setattr(checkpoints.Checkpoints, "_read_arrays", faulty)
    code, _, err = call(train.main, *JOB, "--out", str(tmp_path / "run"))
    assert code == 1 and "differs from what was written" in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


BAD = {name: DAMAGES[name] for name in (*JSON, "without keys")} | {
    "a text for a number": wrong("alive", value="many"),
    "a number for statistics": wrong("test_accuracy", value=0.5),
    "no mean": wrong("test_accuracy", value={"n": 3}),
    "true for a number": wrong("flops", value=True),
}


@pytest.mark.parametrize("damage", BAD)
def test_the_summary_of_a_run(call, whole, tmp_path, damage):
    folder = shutil.copytree(whole / "finished", tmp_path / "run")
    BAD[damage](folder / "summary.json")
    refused(call, train.main, [*JOB, "--resume"], folder, "summary.json")


@pytest.fixture
def compared(tmp_path):
    """A folder of the comparison, with one of two cells finished, without training."""
    study = compare.Options(method="fixed", sparsity="0.5")
    files.write_json(tmp_path / "config.json", identity(study))
    files.write_json(tmp_path / "results.json", {"dense": SUMMARY})
    files.write_text(tmp_path / "table.md", "")
    assert set(compare.read_results(tmp_path)) == {"dense"}
    return tmp_path


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("config.json", DAMAGES[damage]) for damage in ("missing", *JSON)),
        *(("results.json", DAMAGES[damage]) for damage in ("missing", *JSON)),
        ("results.json", wrong("dense", value=[])),
        ("results.json", wrong("dense", "test_accuracy", "mean", value=None)),
        ("results.json", wrong("dense", "dense", value=3)),
    ],
)
def test_a_comparison(call, compared, name, damage):
    damage(compared / name)
    refused(call, compare.main, COMPARE, compared, name)


def test_the_unfinished_cell_of_a_comparison(call, compared):
    cell = compared / "unfinished" / "fixed-0.5"
    cell.mkdir(parents=True)
    (cell / "config.json").write_text("{")
    refused(call, compare.main, COMPARE, compared, "unfinished/fixed-0.5/config.json")


def test_what_a_kill_left_of_a_finished_cell_goes(call, compared):
    unfinished = compared / "unfinished"
    (unfinished / "dense").mkdir(parents=True)
    both = {"dense": SUMMARY, "fixed-0.5": SUMMARY}
    files.write_json(compared / "results.json", both)
    assert call(compare.main, *COMPARE, "--out", str(compared))[0] == 0
    assert not unfinished.exists() and compare.read_results(compared) == both


def sample(like):
    """A value that looks like that."""
    if isinstance(like, dict):
        return {"one" if key is ... else key: sample(value) for key, value in like.items()}
    if isinstance(like, list):
        return [sample(like[0])] * 2
    return {str: "fixed", int: 0, float: 0.9}[like]


@pytest.fixture(params=STUDIES)
def study(request, tmp_path):
    """A study with a finished cell, without training: its command, folder, cell and arrays."""
    experiment, cell, arrays = STUDIES[request.param]
    described = experiment.prepare(experiment.Options())
    content = described.content_of(cell)
    files.write_json(tmp_path / "config.json", described.identity)
    files.write_json(tmp_path / "results.json", {cell: sample(content.numbers)})
    files.write_json(tmp_path / "summary.json", {"dataset_description": "digits"})
    files.write_text(tmp_path / "table.md", "")
    kept = {**content.arrays, **content.large}
    for name, start in kept.items():
        write_arrays(tmp_path / name, {f"{start}x": np.arange(100.0)})
    assert set(kept) == set(arrays)
    assert set(read_results(tmp_path, described.content_of)) == {cell}
    return experiment, tmp_path, cell, arrays


OF_A_STUDY = [
    *(("config.json", DAMAGES[damage]) for damage in ("missing", "truncated", "a list")),
    *(("results.json", DAMAGES[damage]) for damage in ("missing", *JSON)),
    ("results.json", wrong("CELL", value=3)),
    ("results.json", wrong("CELL", value={})),
    ("results.json", wrong("CELL", "seconds", value="long")),
    ("results.json", wrong("CELL", "ACCURACY", value=0.5)),
    ("results.json", wrong("CELL", "ACCURACY", value=[])),
    ("results.json", wrong("CELL", "ACCURACY", value=["high"])),
    ("results.json", wrong("nobody", value={})),
    ("summary.json", DAMAGES["truncated"]),
    ("summary.json", DAMAGES["without keys"]),
    *(("ARRAYS", DAMAGES[damage]) for damage in ("missing", "empty", "truncated", "flipped")),
    ("ARRAYS", lambda file: file.write_text("letter")),
    ("ARRAYS", lambda file: write_arrays(file, {"other": np.ones(3)})),
]


@pytest.mark.parametrize("case", range(len(OF_A_STUDY)))
def test_a_study(call, study, case):
    experiment, folder, cell, arrays = study
    name, damage = OF_A_STUDY[case]
    results = folder / "results.json"
    accuracy = "final_accuracy" if experiment is lottery_ticket else "test_accuracy"
    words = {"CELL": cell, "ACCURACY": accuracy}
    if name == "results.json":  # the names of this study in place of the words
        text = results.read_text()
        for word, meant in words.items():
            text = text.replace(f'"{meant}"', f'"{word}"')
        results.write_text(text)
        damage(results)
        if results.exists():
            content = results.read_bytes()
            for word, meant in words.items():
                content = content.replace(f'"{word}"'.encode(), f'"{meant}"'.encode())
            results.write_bytes(content)
        refused(call, experiment.main, [], folder, name)
        return
    for file in arrays if name == "ARRAYS" else (name,):
        copy = (folder / file).read_bytes()
        damage(folder / file)
        refused(call, experiment.main, [], folder, file)
        (folder / file).write_bytes(copy)


def test_the_unfinished_group_of_a_study(call, study):
    experiment, folder, *_ = study
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.json").write_text("[]")
    code, _, err = call(experiment.main, "--out", str(folder), "--minutes", "-1")
    assert code == 1 and err.count("\n") == 1 and "unfinished/config.json is damaged" in err
