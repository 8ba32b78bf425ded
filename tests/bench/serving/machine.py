"""What the figures were measured on. Names no host and no folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

PACKAGES = ("torch", "ray", "fastapi", "uvicorn", "litserve", "msgspec")
COMMITS = 50


def machine(folder: Path) -> dict[str, str]:
    """In the order to print. `folder`: where the databases will be."""
    cpu = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if _version(name))
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": cpu[1] if cpu else platform.machine(),
        "memory": f"{int(memory[1]) / 1024**2:.0f} GB" if memory else "?",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "packages": versions,
        "a commit of one row": f"{commit_ms(folder):.2f} ms (SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL, "
        f"{filesystem(folder, _read('/proc/mounts'))})",
    }


def commit_ms(folder: Path) -> float:
    """Median time of a durable commit in this folder, alone; a folder in memory would make it next to nothing."""
    path = folder / "commit.sqlite3"
    times_ms = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE one (value INTEGER)")
        for _ in range(COMMITS):
            started = time.perf_counter()
            connection.execute("INSERT INTO one VALUES (1)")
            times_ms.append(1000 * (time.perf_counter() - started))
    path.unlink()
    return statistics.median(times_ms)


def filesystem(folder: Path, mounts: str) -> str:
    """Type of the file system a folder is on, by the lines of /proc/mounts."""
    target = str(folder.resolve()) + "/"
    best, kind = "", "?"
    for line in mounts.splitlines():
        _, place, found, *_ = line.split()
        if target.startswith(place.rstrip("/") + "/") and len(place) >= len(best):
            best, kind = place, found
    return kind


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
