"""CPU time and memory of a system: its process tree, by /proc, and what the machine did besides.

A system is one process and everything under it, plus the sessions that those have opened: Ray's processes outlive the
ones that started them. Linux only.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KB_PER_MB = 1024
_PYTHON = re.compile(r"python[\d.]*$")
_REPLICA = re.compile(r"ServeReplica:[^:]+:([^.:]+)")
_WORKER = re.compile(r"from multiprocessing\.(\w+) import")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """One line of /proc/<pid>/stat. `cpu_s`: user and system time since its start, of all its threads."""

    pid: int
    parent: int
    session: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time of one process so far, by the name it is shown under."""

    name: str
    cpu_s: float


def parse_stat(line: str) -> ProcessStat | None:
    """None for a process that has ended and was not waited for yet."""
    # The name, in parentheses, may hold spaces and parentheses itself: count from the last one.
    head, _, tail = line.rpartition(")")
    fields = tail.split()
    state, parent, _, session = fields[:4]
    user, system = int(fields[11]), int(fields[12])
    if state in "ZX":
        return None
    return ProcessStat(int(head.split(" ", 1)[0]), int(parent), int(session), (user + system) / TICKS_PER_S)


def tree(root: int, processes: Iterable[ProcessStat], own_session: int) -> list[ProcessStat]:
    """`root`, what it started, and whoever is in a session of theirs; `own_session` is ours and does not count."""
    everyone = list(processes)
    children: dict[int, list[ProcessStat]] = defaultdict(list)
    members: dict[int, list[ProcessStat]] = defaultdict(list)
    for one in everyone:
        children[one.parent].append(one)
        members[one.session].append(one)
    found: dict[int, ProcessStat] = {}
    waiting = [one for one in everyone if one.pid == root]
    while waiting:
        one = waiting.pop()
        if one.pid in found:
            continue
        found[one.pid] = one
        waiting += children[one.pid]
        if one.session != own_session:
            waiting += members[one.session]
    return list(found.values())


def process_name(command: list[str]) -> str:
    """What to call a process in a table: a replica by its deployment, a Python program by its module or file."""
    if not command or not command[0]:
        return "?"
    title = command[0]
    if title.startswith("ray::"):
        replica = _REPLICA.search(title)
        return f"replica {replica[1]}" if replica else title.removeprefix("ray::").split(".")[0].split(" ")[0]
    program = Path(title.split(" ")[0]).name
    if not _PYTHON.match(program):
        return program.rstrip(":")
    return _python_program([one for one in command[1:] if one not in {"-u", "-S", "-s", "-E", "-B"}])


def _python_program(arguments: list[str]) -> str:
    if not arguments:
        return "python"
    if arguments[0] == "-m" and len(arguments) > 1:
        return arguments[1].rpartition(".")[2]
    if arguments[0] == "-c" and len(arguments) > 1:
        worker = _WORKER.search(arguments[1])
        return {"spawn": "worker", "resource_tracker": "resource tracker"}.get(worker[1] if worker else "", "python -c")
    path = Path(arguments[0])
    return f"{path.parent.name}/{path.name}" if path.name in {"main.py", "agent.py"} else path.name


def cpu_of(root: int) -> dict[int, Usage]:
    """CPU time of every process of a system so far, by pid."""
    return {one.pid: Usage(process_name(_command(one.pid)), one.cpu_s) for one in _tree_now(root)}


def spent_s(before: Mapping[int, Usage], after: Mapping[int, Usage]) -> dict[str, float]:
    """CPU seconds between two looks, by name. Whoever came in between counts whole; who has gone since, not at all."""
    spent: dict[str, float] = defaultdict(float)
    for pid, usage in after.items():
        spent[usage.name] += usage.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return dict(spent)


def memory_mb(root: int) -> float:
    """Resident memory of a system: proportional set size, so that a page shared by processes counts once."""
    return sum(memory_by_process_mb(root).values())


def memory_by_process_mb(root: int) -> dict[str, float]:
    """The same by name."""
    return memory_of_mb(one.pid for one in _tree_now(root))


def memory_of_mb(pids: Iterable[int]) -> dict[str, float]:
    """The same of these processes."""
    found: dict[str, float] = defaultdict(float)
    for pid in pids:
        found[process_name(_command(pid))] += _pss_kb(pid) / KB_PER_MB
    return dict(found)


def machine_busy_s(stat: str | None = None) -> float:
    """CPU seconds that this machine's cores have not been idle: all processes, interrupts, and time taken by a host."""
    fields = [int(value) for value in (stat or (PROC / "stat").read_text()).split("\n", 1)[0].split()[1:9]]
    idle, waiting_for_disk = fields[3], fields[4]
    return (sum(fields) - idle - waiting_for_disk) / TICKS_PER_S


def _tree_now(root: int) -> list[ProcessStat]:
    return tree(root, _living(), os.getsid(0))


def _living() -> list[ProcessStat]:
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            one = parse_stat((entry / "stat").read_text())
        except (OSError, ValueError):
            continue  # it ended while we looked
        if one is not None:
            found.append(one)
    return found


def _command(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return []


def _pss_kb(pid: int) -> int:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
