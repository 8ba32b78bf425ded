"""Ending a run's processes: all of them, however they try to hide, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.cli.processes import OWNER_VARIABLE, OwnedProcesses

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at Linux's /proc")

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)
CHILD_WITHOUT_THE_MARK = """
import os, subprocess, sys
environment = {k: v for k, v in os.environ.items() if k != "NILM_RUN_OWNER"}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def start(started: list[subprocess.Popen[str]], owner: Path, program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, OWNER_VARIABLE: str(owner)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def read_number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_only_this_data_directorys_processes_are_found(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    ours = start(started, tmp_path / "a", IGNORES_SIGTERM)
    start(started, tmp_path / "b", IGNORES_SIGTERM)
    read_number(ours)
    assert OwnedProcesses(tmp_path / "a").find() == [ours.pid]


def test_one_that_ignores_sigterm_is_killed_after_the_grace(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    process = start(started, tmp_path, IGNORES_SIGTERM)
    read_number(process)
    assert OwnedProcesses(tmp_path).end(grace_s=0.2) == [process.pid]
    assert process.wait() == -signal.SIGKILL


def test_a_child_that_lost_the_mark_and_its_parent_is_found_by_its_session(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    leader = start(started, tmp_path, CHILD_WITHOUT_THE_MARK)
    orphan = read_number(leader)
    leader.wait()
    owned = OwnedProcesses(tmp_path, {leader.pid})
    assert owned.find() == [orphan]
    owned.end(grace_s=1.0)
    assert owned.wait_gone(1.0)


def test_a_zombie_counts_as_gone(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    process = start(started, tmp_path, "pass")
    time.sleep(0.3)  # ended, and nobody has waited for it
    assert OwnedProcesses(tmp_path, {process.pid}).find() == []


def test_what_fate_starts_ends_with_its_parent(tmp_path: Path) -> None:
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-m', 'serve_app.cli.fate', str(os.getpid()),"
            f" sys.executable, '-c', {sleeper!r}])\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, OWNER_VARIABLE: str(tmp_path)},
        cwd=Path(__file__).parents[3],
    )
    with parent:
        child = read_number(parent)
        assert child in OwnedProcesses(tmp_path).find()
        parent.kill()
        parent.wait()
        assert OwnedProcesses(tmp_path).wait_gone(5.0), "SIGKILL to the parent must take the child along"
