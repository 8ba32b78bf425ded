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
TWO_CHILDREN = """
import os, subprocess, sys
unmarked = {k: v for k, v in os.environ.items() if k != "NILM_RUN_OWNER"}
for environment in (os.environ, unmarked):
    print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment).pid, flush=True)
os._exit(0)
"""
STRANGER = """
import os, subprocess, sys, time
marked = {**os.environ, "NILM_RUN_OWNER": sys.argv[1]}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=marked)
print(child.pid, flush=True)
time.sleep(60)
"""
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
    assert OwnedProcesses(tmp_path).find() == [], "nothing is left that says whose it is"
    owned.end(grace_s=1.0)
    assert owned.wait_gone(1.0)


def test_a_session_whose_leader_has_ended_is_ours_for_one_process_with_the_mark(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    leader = start(started, tmp_path, TWO_CHILDREN)
    children = {read_number(leader), read_number(leader)}
    leader.wait()
    owned = OwnedProcesses(tmp_path)
    assert set(owned.find()) == children
    assert set(owned.end(grace_s=0.0)) == children


def test_a_process_of_the_run_in_a_strangers_session_does_not_make_that_session_ours(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    started.append(stranger)
    ours = read_number(stranger)
    owned = OwnedProcesses(tmp_path)
    assert owned.find() == [ours]
    assert owned.end(grace_s=0.0) == [ours]
    assert stranger.poll() is None


def test_a_zombie_counts_as_gone(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    process = start(started, tmp_path, "pass")
    time.sleep(0.3)  # ended, and nobody has waited for it
    assert OwnedProcesses(tmp_path, {process.pid}).find() == []


PARENT = """
import os, subprocess, sys, time
owner, grace_s, program = sys.argv[1:]
fate = [sys.executable, "-m", "serve_app.cli.fate", str(os.getpid()), grace_s, sys.executable, "-c", program]
subprocess.Popen(fate, start_new_session=True, env={**os.environ, "NILM_RUN_OWNER": owner})
time.sleep(60)
"""
LONG_DRAIN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: time.sleep(60))
print(1, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "grace_s"),
    [
        pytest.param("import os, time; print(1, flush=True); time.sleep(60)", 60, id="one that hears SIGTERM"),
        pytest.param(LONG_DRAIN, 0.3, id="one that drains for longer than it may"),
        pytest.param(CHILD_WITHOUT_THE_MARK.replace("os._exit(0)", "import time; time.sleep(60)"), 60, id="a child"),
    ],
)
def test_what_fate_starts_ends_with_its_parent(tmp_path: Path, program: str, grace_s: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(grace_s), program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as parent:
        owned = OwnedProcesses(tmp_path)
        read_number(parent)
        assert owned.find(), "fate, at least"
        parent.kill()
        parent.wait()
        assert owned.wait_gone(10.0), "SIGKILL to the parent must take all of it along"


def fate(started: list[subprocess.Popen[str]], owner: Path, program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli.fate", str(os.getpid()), "0.3", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, OWNER_VARIABLE: str(owner)},
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    started.append(process)
    return process


def test_fate_ends_what_its_program_leaves_behind(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    watcher = fate(started, tmp_path, CHILD_WITHOUT_THE_MARK)
    orphan = read_number(watcher)
    owned = OwnedProcesses(tmp_path, {watcher.pid})
    assert orphan in owned.find()
    assert watcher.wait(15) == 0
    assert owned.find() == []


def test_fate_says_how_its_program_ended(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    assert fate(started, tmp_path, "import sys; sys.exit(7)").wait(10) == 7
    assert fate(started, tmp_path, "import os; os.kill(os.getpid(), 9)").wait(10) == 128 + signal.SIGKILL
    asked = fate(started, tmp_path, LONG_DRAIN)
    read_number(asked)
    asked.terminate()
    assert asked.wait(10) == 128 + signal.SIGTERM
    assert OwnedProcesses(tmp_path).find() == []


def test_fate_starts_nothing_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    written = tmp_path / "written"
    refused = subprocess.run(
        [sys.executable, "-m", "serve_app.cli.fate", str(ended.pid), "1", "touch", str(written)],
        env={**os.environ, OWNER_VARIABLE: str(tmp_path)},
        cwd=Path(__file__).parents[3],
        timeout=10,
        check=False,
    )
    assert refused.returncode == 128 + signal.SIGTERM
    assert not written.exists()
