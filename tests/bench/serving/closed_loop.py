"""Closed loop by wrk: `connections` clients, each asks again as soon as it is answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.bench.serving.load import LoadFailed, LoadResult

SCRIPT = Path(__file__).with_name("rotate.lua")
MARK = "WRK "
PATIENCE_S = 10
"""A reply that takes longer is a failure; wrk's own 2 s would hide how slow a slow system is."""
GRACE_S = 30.0
MISSING = "wrk is not installed. On Debian and Ubuntu: apt-get install wrk"


def find_wrk() -> str:
    """Its path. Raises LoadFailed, saying which package has it."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadFailed(MISSING)
    return found


def closed_loop(url: str, requests_file: Path, connections: int, seconds: float) -> LoadResult:
    """Load `url` for whole `seconds` (at least one). Raises LoadFailed."""
    duration_s = max(1, round(seconds))
    command = [find_wrk(), "--threads", "1", "--connections", str(connections), "--duration", f"{duration_s}s"]
    command += ["--timeout", f"{PATIENCE_S}s", "--script", str(SCRIPT), url, "--", str(requests_file)]
    before_s = _children_cpu_s()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=duration_s + GRACE_S)
    except subprocess.CalledProcessError as error:
        raise LoadFailed(f"wrk failed: {(error.stderr or error.stdout).strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"wrk did not end within {GRACE_S:.0f} s of its time") from None
    return parse_wrk(done.stdout, _children_cpu_s() - before_s)


def parse_wrk(output: str, generator_cpu_s: float = 0.0) -> LoadResult:
    """The figures of our script's last line. Raises LoadFailed when it is not there.

    wrk counts a status above 399 as an error, and it has had a reply then; the other errors have none.
    """
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        raise LoadFailed(f"wrk said nothing of its figures: {output.strip()[-300:]}")
    said = json.loads(lines[-1].removeprefix(MARK))
    unanswered = sum(said[name] for name in ("connect", "read", "write", "timeout"))
    return LoadResult(
        acknowledged=said["replies"] - said["status"],
        failures=said["status"] + unanswered,
        seconds=said["duration_us"] / 1e6,
        p50_ms=said["p50_us"] / 1000,
        p99_ms=said["p99_us"] / 1000,
        max_ms=said["max_us"] / 1000,
        generator_cpu_s=generator_cpu_s,
    )


def _children_cpu_s() -> float:
    """CPU time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system
