"""Raw forward windows/s of the active models on each engine, one thread, no service around them.

    python -m tests.bench.engines --rounds 5

Engines take turns in every round, so that a slower minute of the machine is everybody's; the table has medians over
the rounds and, as a ratio to torch in the same round, median and range. Each row is `LoadedModel.predict`: normalising,
the forward pass and the readout. Once with the allocator as `nilm run` sets it, once as glibc has it: glibc reads its
settings only when a process starts, so each is a process of its own. Also what a load costs: seconds,
the longest time it kept the interpreter from another thread, and resident memory. Asserts nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from models.engines import Engine
from models.loader import LoadedModel, load_verified
from models.registry import Registry, RegistryEntry
from serve_app.cli.cluster import MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES

BATCHES = (1, 8, 32, 64)
ALLOCATORS = {
    "nilm run": {
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
    },
    "glibc": {},
}
TICK_S = 0.001
Result = TypeVar("Result")


def main() -> None:
    """One process for each allocator, one after another."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    arguments.add_argument("--as", dest="allocator", choices=ALLOCATORS, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.allocator is not None:
        measure(chosen.allocator, chosen.rounds, chosen.seconds)
        return
    base = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for name, settings in ALLOCATORS.items():
        command = [sys.executable, "-m", "tests.bench.engines", f"--as={name}"]
        command += [f"--rounds={chosen.rounds}", f"--seconds={chosen.seconds}"]
        subprocess.run(command, env=base | settings | {"OMP_NUM_THREADS": "1"}, check=True)


def measure(allocator: str, rounds: int, seconds: float) -> None:
    """Loads every active model on every engine, then lets them take turns."""
    torch.set_num_threads(1)
    registry = Registry.load()
    print(f"\nallocator: {allocator}; {rounds} rounds of {seconds:g} s; torch {torch.__version__}\n")
    print(f"{'model':<24}{'engine':<10}{'load s':>8}{'blocked ms':>12}{'MB':>6}")
    models = {}
    for entry in (entry for entry in registry.entries if entry.is_active):
        for engine in Engine:
            models[entry.model_id, engine] = load(entry, engine, registry.root)
    print(f"\n{'model':<24}{'batch':>6}" + "".join(f"{engine:>10}" for engine in Engine) + "   ratio (range)")
    for model_id in dict.fromkeys(model_id for model_id, _ in models):
        for batch in BATCHES:
            found: dict[Engine, list[float]] = {engine: [] for engine in Engine}
            for _ in range(rounds):
                for engine in Engine:
                    found[engine].append(windows_per_s(models[model_id, engine], batch, seconds))
            ratios = [other / torchs for torchs, other in zip(found[Engine.TORCH], found[Engine.OPENVINO], strict=True)]
            print(
                f"{model_id:<24}{batch:>6}"
                + "".join(f"{statistics.median(found[engine]):>10.0f}" for engine in Engine)
                + f"   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def load(entry: RegistryEntry, engine: Engine, root: Path) -> LoadedModel:
    """One model; prints what loading it cost. Memory is what the process grew by."""
    before_mb, began = resident_mb(), time.perf_counter()
    wanted = dataclasses.replace(entry, engine=engine)
    model, blocked_s = while_ticking(lambda: load_verified(wanted, root, evidence_needed=False))
    took_s = time.perf_counter() - began
    grown_mb = resident_mb() - before_mb
    print(f"{entry.model_id:<24}{engine:<10}{took_s:>8.2f}{1000 * blocked_s:>12.0f}{grown_mb:>6.0f}")
    return model


def while_ticking(work: Callable[[], Result]) -> tuple[Result, float]:
    """Its result, and the longest time for which a thread that only wants to wake up could not."""
    longest_s, done = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest_s
        last = time.perf_counter()
        while not done.wait(TICK_S):
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    return result, longest_s


def windows_per_s(model: LoadedModel, batch: int, seconds: float) -> float:
    """Of the fastest tenth of the calls: what else ran on the machine meanwhile is not the engine's."""
    rng = np.random.default_rng(batch)
    windows_kw = rng.gamma(1.0, 0.5, (batch, model.entry.input_window_size)).astype(np.float32)
    model.predict(windows_kw)
    took_s, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        model.predict(windows_kw)
        took_s.append(time.perf_counter() - began)
    return batch / statistics.quantiles([*took_s, took_s[-1]], n=10)[0]


def resident_mb() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
