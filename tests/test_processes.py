"""Two and four processes, joined over the loopback interface, train as a single one does."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import processes

ROOT = Path(__file__).parents[1]
PATIENCE = 120
"""Seconds after which a job is given up; it takes five to ten on two idle cores."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(job, count, folder):
    """The processes of a job; what they say goes to one file each."""
    address = f"127.0.0.1:{free_port()}"
    flags = re.sub(r"\S*device_count\S*", "", os.environ.get("XLA_FLAGS", ""))
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # jobs compile the same programs
    started = []
    for number in range(count):
        said = folder / f"{job} {number}.txt"
        command = [sys.executable, "-m", "tests.processes", address, count, number, folder, job]
        with said.open("w") as out:
            process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=env, stdout=out, stderr=out
            )
        started.append((process, said))
    return started


def wait(started, enough=lambda codes: None not in codes):
    """The exit codes as soon as there are enough; whoever runs then or at the end is killed."""
    end = time.monotonic() + PATIENCE
    try:
        while not enough(codes := [process.poll() for process, _ in started]):
            if any(codes) or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for process, _ in started:
            process.kill()
            process.wait()
    said = "\n".join(said.read_text()[-3000:] for _, said in started)
    if re.search("AttributeError.*gloo", said):
        pytest.skip("this jaxlib has no gloo, so CPU processes cannot be joined")
    return codes, said


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the jobs wrote, by name, and the folder with their checkpoints."""
    folder = tmp_path_factory.mktemp("processes")
    codes, said = wait(start("killed", 2, folder), lambda codes: codes[1] is not None)
    assert codes[1] == -9, said
    for job, count in (("restarted", 2), ("wider", 4)):
        codes, said = wait(start(job, count, folder))
        assert codes == [0] * count, said
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}, folder


@pytest.fixture(scope="module")
def alone():
    """What a single process starts from and comes to, by method."""
    return {method: processes.alone(method) for method in processes.METHODS}


def masks(tree):
    return {path: leaf for path, leaf in tree.items() if ".masks" in path}


@pytest.mark.parametrize(
    ("run", "method"),
    [
        ("two rigl", "rigl"),
        ("two sparse_evolution", "sparse_evolution"),
        ("four rigl", "rigl"),
        ("four from two", "rigl"),
    ],
)
def test_the_masks_of_one_process(found, alone, run, method):
    many, single = found[0][run], processes.by_path(alone[method][1])
    assert masks(many) and many.keys() == single.keys()
    for path, leaf in single.items():
        exact = leaf.dtype.kind in "biu"
        np.testing.assert_allclose(many[path], leaf, *((0, 0) if exact else (1e-4, 1e-6)), path)
    assert many["[1].last_update"] == 6


def test_a_killed_job_goes_on_bit_for_bit(found):
    straight, resumed = found[0]["two rigl"], found[0]["resumed"]
    assert straight.keys() == resumed.keys()
    for path, leaf in straight.items():
        np.testing.assert_array_equal(resumed[path], leaf, path)


def test_a_checkpoint_fits_any_number_of_processes(found, alone):
    """What two processes wrote, four read in another layout, and so does a single one."""
    files, folder = found
    single = processes.by_path(processes.restore(folder / "rigl", alone["rigl"][0]))
    assert single["[1].count"] == processes.SAVE
    for path, leaf in files["restored"].items():
        np.testing.assert_array_equal(single[path], leaf, path)
