"""Output folders that cannot be used, full disks, two processes in one folder: one line each."""

import errno
import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from experiments.common import files
from experiments.common.faults import FolderError
from experiments.common.report.console import Console
from experiments.common.study import checkpoints
from experiments.common.study.folder import RunFolder, find_run
from experiments.common.study.study import train_groups
from experiments.compare import __main__ as compare
from experiments.lottery_ticket import __main__ as lottery_ticket
from experiments.train import __main__ as train

SMALL = ["--epochs", "1", "--seeds", "1", "--batch-size", "200", "--method", "fixed"]
SMALL += ["--no-dense-twin"]
STUDY = ["--seeds", "1", "--scale", "0.02", "--rounds", "1", "--method", ""]


def raising(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("main", [train.main, compare.main, lottery_ticket.main])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("link", "link is a link to .*nowhere, which does not exist"),
        ("n" * 300, "File name too long"),
        ("file/below", "lies below a file"),
        ("file", "is a file"),
        ("loop", "Too many levels of symbolic links"),
        ("[/bold]", None),
    ],
)
def test_odd_places(call, tmp_path, main, name, message):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    if message is None:  # odd, but possible
        if main is train.main:
            code, out, _ = call(main, *SMALL, "--out", str(tmp_path / name))
            assert code == 0 and f"metrics are in {tmp_path}/[/bold]" in out.replace("\n", "")
        return
    before = sorted(os.listdir(tmp_path))
    code, _, err = call(main, "--out", str(tmp_path / name))
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_may_not_be_read(call, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "listdir", raising(errno.EACCES))
    code, _, err = call(train.main, "--out", str(tmp_path))
    assert code == 1 and err == f"error: {tmp_path}: Permission denied; choose another --out.\n"


@pytest.mark.parametrize("what", ["os.mkdir", "os.open"])
def test_a_disk_that_may_only_be_read(call, tmp_path, monkeypatch, what):
    folder = tmp_path if what == "os.open" else tmp_path / "new"
    monkeypatch.setattr(what, raising(errno.EROFS))
    code, _, err = call(train.main, *SMALL, "--out", str(folder))
    assert code == 1 and "Read-only file system" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_full_disk(call, tmp_path, monkeypatch, step):
    """Whatever is written when it gets full, down to the pictures; and the run can go on."""
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = call(train.main, *SMALL, "--out", str(tmp_path / "run"))
    assert code == 1 and "No space left on device; free some space" in err and err.count("\n") == 1
    assert str(tmp_path / "run") in err
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".part"]
    if step == 4:
        code, _, err = call(train.main, *SMALL, "--out", str(tmp_path / "run"), "--resume")
        assert code == 0, err


def test_a_disk_that_is_full_for_a_checkpoint(tmp_path, monkeypatch):
    def save(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand more")

    state = {"w": jnp.ones(1000)}
    with find_run(tmp_path / "run", {"a": 1}, resume=False) as folder:
        folder.save(0, state, {})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.shutil, "disk_usage", lambda path: (0, 0, 5000))
            with pytest.raises(
                FolderError, match="checkpoints/1 .* the disk has 5,000.; free some space"
            ):
                folder.save(1, state, {})
            patch.undo()
            patch.setattr(checkpoints.ocp.CheckpointManager, "save", save)
            with pytest.raises(FolderError, match="No space left on device.; free some space"):
                folder.save(1, state, {})
        folder.save(1, state, {"step": 1})
        assert folder.restore(state, pytest.fail).progress["step"] == 1


def test_unfinished_files_never_follow_links(tmp_path):
    other, file = tmp_path / "other", tmp_path / "config.json"
    other.write_text("mine")
    (tmp_path / "config.json.part").symlink_to(other)
    files.write_json(file, {"a": 1})
    assert other.read_text() == "mine" and json.loads(file.read_text()) == {"a": 1}
    assert sorted(os.listdir(tmp_path)) == ["config.json", "other"]
    (tmp_path / files.LOCK).symlink_to(other)
    with pytest.raises(OSError, match="symbolic link"):
        files.Lock(tmp_path).take()
    assert other.read_text() == "mine"


HOLD = """
import pathlib, sys, time
from experiments.common import files
files.Lock(pathlib.Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


def test_two_processes_in_one_folder(call, tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "taken\n"
        for main, args in ((train.main, SMALL), (lottery_ticket.main, STUDY)):
            code, _, err = call(main, *args, "--out", str(tmp_path))
            assert code == 1 and err.count("\n") == 1
            assert f"process {other.pid} is at work in {tmp_path}" in err
        assert os.listdir(tmp_path) == [files.LOCK]
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / files.LOCK).read_text() == f"{other.pid}\n"  # and nobody holds it
    with find_run(tmp_path, {"a": 1}, resume=False) as mine:
        assert (tmp_path / files.LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(FolderError, match=f"process {os.getpid()} is at work"):
            find_run(tmp_path, {"a": 1}, resume=True).__enter__()
        assert mine.restore({"w": jnp.ones(1)}, pytest.fail) is None
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_a_kill_left_of_a_finished_group_goes(tmp_path):
    def run():
        report, console = lambda: None, Console(quiet=True)
        train_groups([], tmp_path, console, what="calls", minutes=1, report=report)

    files.write_json(tmp_path / "results.json", {"one": {}, "two": {}})
    unfinished = tmp_path / "unfinished"
    for group, stays in (("two, one and 5 more", False), ("three, four", True)):
        with RunFolder(unfinished, {"group": group}):
            pass
        run()
        assert unfinished.exists() == stays
