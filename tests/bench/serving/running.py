"""A system that runs: how it is started as a program, waited for and ended, so that nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serve_app.cli.cluster import KILL_S, MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES
from serve_app.cli.processes import OWNER_VARIABLE, OwnedProcesses
from tests.bench.serving.baselines.environment import DATABASE_VARIABLE, MODEL_VERSION_VARIABLE, SECRET_VARIABLE
from tests.integration.service import ROOT, SECRET

START_S = 120.0
STOP_S = 20.0
POLL_S = 0.1
DATABASE_NAME = "predictions.sqlite3"


class SystemFailed(Exception):
    """A system did not start or ended by itself; the text has its last words."""


@dataclass(frozen=True, slots=True)
class Running:
    """Where it listens, its first process, and the file it writes to."""

    url: str
    root_pid: int
    database: Path


def baseline_environment(database: Path, model_version: str) -> dict[str, str]:
    """For every baseline: its settings, and what `nilm run` does for the service's allocator and threads."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
        "OMP_NUM_THREADS": "1",
        DATABASE_VARIABLE: str(database),
        MODEL_VERSION_VARIABLE: model_version,
        SECRET_VARIABLE: SECRET,
    }


@contextmanager
def program(
    module: str, port: int, folder: Path, environment: Mapping[str, str], ready: Callable[[str], bool]
) -> Iterator[Running]:
    """Run `python -m module --port`, hand it over once `ready(its output)`, end it. Raises SystemFailed."""
    output = folder / "output.txt"
    # Through `fate`, so that it ends with this process, however that ends.
    command = [sys.executable, "-m", "serve_app.cli.fate", str(os.getpid()), str(STOP_S - KILL_S), sys.executable]
    command += ["-m", module, "--port", str(port)]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, OWNER_VARIABLE: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        give_up_s = time.monotonic() + START_S
        while not ready(output.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise SystemFailed(last_words(output))
            time.sleep(POLL_S)
        yield Running(f"http://127.0.0.1:{port}", process.pid, folder / DATABASE_NAME)
        if process.poll() is not None:
            raise SystemFailed(f"it ended by itself: {last_words(output)}")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        OwnedProcesses(folder, {process.pid}).end(grace_s=0.0)
        process.wait()


def last_words(output: Path) -> str:
    """The end of what it printed."""
    return output.read_text(errors="replace").strip()[-1000:] or "it said nothing"
