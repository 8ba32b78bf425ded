"""CPU time by /proc: whose it is, and under which name."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.serving.processes import (
    TICKS_PER_S,
    ProcessStat,
    Usage,
    cpu_of,
    machine_busy_s,
    memory_mb,
    parse_stat,
    process_name,
    spent_s,
    tree,
)

STAT = "42 (a) b (c) S 7 42 9 0 -1 4194560 1 0 0 0 150 50 900 900 20 0 4 0 100 1000 10 18446744073709551615"


def test_a_stat_line_with_parentheses_in_its_name() -> None:
    assert parse_stat(STAT) == ProcessStat(pid=42, parent=7, session=9, cpu_s=200 / TICKS_PER_S)


def test_a_process_that_has_ended_is_none() -> None:
    assert parse_stat(STAT.replace(" S ", " Z ")) is None


def process(pid: int, parent: int, session: int) -> ProcessStat:
    return ProcessStat(pid, parent, session, 0.0)


def test_a_system_is_its_root_what_that_started_and_the_sessions_they_opened() -> None:
    ours, theirs = 100, 10
    everyone = [
        process(1, 0, 1),
        process(99, 1, ours),  # the benchmark, whose session the root shares
        process(5, 99, ours),
        process(6, 5, theirs),
        process(7, 6, theirs),
        process(8, 1, theirs),  # its parent is gone, its session is not
        process(9, 8, 11),
        process(50, 1, 50),
    ]
    assert sorted(one.pid for one in tree(5, everyone, ours)) == [5, 6, 7, 8, 9]
    assert tree(12345, everyone, ours) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["ray::ServeReplica:nilm:kettle"], "replica kettle"),
        (["ray::ServeReplica:nilm:ingress.handle_request"], "replica ingress"),
        (["ray::ServeController.listen_for_change"], "ServeController"),
        (["ray::IDLE"], "IDLE"),
        (["/usr/bin/python3.11", "-m", "tests.bench.serving.baselines.naive", "--port", "1"], "naive"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main(1)"], "worker"),
        (["python", "-c", "from multiprocessing.resource_tracker import main;main(5)"], "resource tracker"),
        (["python3", "-u", "/x/ray/dashboard/agent.py", "--a"], "dashboard/agent.py"),
        (["/x/python", "-u", "/x/ray/_private/runtime_env/agent/main.py"], "agent/main.py"),
        (["/x/ray/core/src/ray/gcs/gcs_server", "--log"], "gcs_server"),
        (["/x/haproxy", "-f", "c"], "haproxy"),
        ([], "?"),
    ],
)
def test_processes_have_the_names_a_reader_knows(command: list[str], name: str) -> None:
    assert process_name(command) == name


def test_spent_time_is_by_name_and_counts_newcomers_whole() -> None:
    before = {1: Usage("worker", 1.0), 2: Usage("worker", 2.0), 3: Usage("gone", 5.0)}
    after = {1: Usage("worker", 1.5), 2: Usage("worker", 2.25), 4: Usage("new", 0.5)}
    assert spent_s(before, after) == {"worker": 0.75, "new": 0.5}


def test_a_machine_is_busy_with_everything_but_idling_and_waiting_for_disks() -> None:
    assert machine_busy_s("cpu  100 20 30 4000 500 6 7 8 0 0\ncpu0 1") == 171 / TICKS_PER_S


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="looks at Linux's /proc")
def test_the_time_and_memory_of_a_real_child_are_seen() -> None:
    program = (
        "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\nprint(1, flush=True)"
    )
    command = [sys.executable, "-c", f"{program}\ntime.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(2 / TICKS_PER_S)
            (usage,) = cpu_of(child.pid).values()
            assert 0.29 <= usage.cpu_s < 5
            assert memory_mb(child.pid) > 1
        finally:
            child.kill()
    assert cpu_of(child.pid) == {}
