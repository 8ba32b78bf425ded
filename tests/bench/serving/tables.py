"""The measurements as tables of text, the same for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.serving.samples import Measured, Sample
from tests.bench.serving.spread import Spread, figure, ratio
from tests.bench.serving.systems import OURS, SYSTEMS

PROFILED_LOAD = "c=64"
CLOSED = "c="
"""How the label of a closed loop of one window a request begins."""
NOTHING = "-"
FIFTH = 0.2
SHOWN_SHARE = 0.01
"""Of a system's CPU time; processes that use less share a row."""

Figure = Callable[[Sample], float]


@dataclass(frozen=True)
class Table:
    """A title, a sentence to read it by, names of columns, and rows of as many texts."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def all_tables(measured: Measured) -> list[Table]:
    """Those that have something to say, the main one first."""
    tables = [
        main_table(measured),
        batch_table(measured),
        ratio_table(measured),
        process_table(measured),
        footprint_table(measured),
        engine_table(measured),
    ]
    return [table for table in tables if table.rows]


def main_table(measured: Measured) -> Table:
    """Every system under every load."""
    return Table(
        "Every system under every load",
        "Median of the rounds (lowest-highest). Engine: windows answered, as a share of what the bare model does on "
        "one thread at its best batch size.",
        ("load", "system", "req/s", "p50 ms", "p99 ms", "CPU ms/request", "engine", "failures"),
        _load_rows(measured, of_many=False),
    )


def batch_table(measured: Measured) -> Table:
    """Requests of many windows."""
    return Table(
        "Many windows in one request",
        "Latencies of a whole request.",
        ("load", "system", "windows/s", "p50 ms", "p99 ms", "CPU ms/window", "engine", "failures"),
        _load_rows(measured, of_many=True),
    )


def _load_rows(measured: Measured, *, of_many: bool) -> list[tuple[str, ...]]:
    limit = engine_limit(measured)
    rows: list[tuple[str, ...]] = []
    for load, system, samples in _groups(measured):
        if (samples[0].windows_each > 1) is not of_many:
            continue
        share = Spread.of(s.windows_per_second / limit for s in samples) if limit else None
        rows.append(
            (
                load,
                SYSTEMS[system].title,
                _spread(samples, lambda s: s.windows_per_second),
                _spread(samples, lambda s: s.result.p50_ms),
                _spread(samples, lambda s: s.result.p99_ms),
                _spread(samples, lambda s: s.cpu_ms_each),
                f"{share.median:.0%}" if share else NOTHING,
                _failures(samples),
            )
        )
    return rows


def ratio_table(measured: Measured) -> Table:
    """This system against each of the others."""
    by_key = {(load, system): samples for load, system, samples in _groups(measured)}
    rows = []
    for (load, system), theirs in by_key.items():
        ours = by_key.get((load, OURS))
        if system == OURS or ours is None:
            continue
        rows.append(
            (
                load,
                SYSTEMS[system].title,
                _ratio(ours, theirs, lambda s: s.result.per_second) if load.startswith(CLOSED) else NOTHING,
                _ratio(ours, theirs, lambda s: s.result.p50_ms),
                _ratio(ours, theirs, lambda s: s.result.p99_ms),
                _ratio(ours, theirs, lambda s: s.cpu_ms_each),
            )
        )
    return Table(
        f"{SYSTEMS[OURS].title[0].upper()}{SYSTEMS[OURS].title[1:]}, divided by each other system",
        "Each round's own ratio, then their median (lowest-highest). Better is above 1 for req/s, below 1 for the "
        "rest. In an open loop each system has a rate of its own.",
        ("load", "against", "req/s", "p50", "p99", "CPU/request"),
        rows,
    )


def process_table(measured: Measured) -> Table:
    """Where the CPU time of a request goes."""
    loads = list(dict.fromkeys(sample.load for sample in measured.samples if sample.load.startswith(CLOSED)))
    load = PROFILED_LOAD if PROFILED_LOAD in loads else (loads[-1] if loads else "")
    rows: list[tuple[str, ...]] = []
    for _, system, samples in (group for group in _groups(measured) if group[0] == load):
        by_process = _cpu_ms_by_process(samples)
        least_ms = SHOWN_SHARE * sum(statistics.median(values) for values in by_process.values())
        shown = {name: values for name, values in by_process.items() if statistics.median(values) >= least_ms}
        small = [values for name, values in by_process.items() if name not in shown]
        rows += [
            (SYSTEMS[system].title, name, str(Spread.of(shown[name])))
            for name in sorted(shown, key=lambda name: -statistics.median(shown[name]))
        ]
        if small:
            rest = str(Spread.of(map(sum, zip(*small, strict=True))))
            rows.append((SYSTEMS[system].title, f"{len(small)} more", rest))
    return Table(
        f"CPU time by process, {load}",
        "All processes of a name together, milliseconds a request; background work of the same time included.",
        ("system", "process", "CPU ms/request"),
        rows,
    )


def _cpu_ms_by_process(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Milliseconds a window by process name, one value a sample."""
    names = dict.fromkeys(name for sample in samples for name in sample.cpu_s)
    return {
        name: [
            1000 * sample.cpu_s.get(name, 0.0) / max(1, sample.result.acknowledged * sample.windows_each)
            for sample in samples
        ]
        for name in names
    }


def footprint_table(measured: Measured) -> Table:
    """What a system costs by being there."""
    rows = []
    for system in _in_order(footprint.system for footprint in measured.footprints):
        those = [footprint for footprint in measured.footprints if footprint.system == system]
        rows.append(
            (
                SYSTEMS[system].title,
                str(Spread.of(one.memory_mb for one in those)),
                str(Spread.of(100 * one.at_rest_cores for one in those)),
                str(Spread.of(one.start_s for one in those)),
            )
        )
    return Table(
        "Footprint",
        "Memory of all processes after the highest concurrency, pages that they share counted once. At rest: share of "
        "one core while nobody asks.",
        ("system", "memory MB", "at rest, % of a core", "start s"),
        rows,
    )


def engine_table(measured: Measured) -> Table:
    """The bare model."""
    rows = []
    for batch in dict.fromkeys(one.batch for one in measured.engine):
        rates = Spread.of(one.windows_per_second for one in measured.engine if one.batch == batch)
        rows.append((str(batch), str(rates), figure(1000 / rates.median) if rates else NOTHING))
    return Table(
        "The bare model, one thread",
        "Forward passes without a server around them.",
        ("windows a batch", "windows/s", "CPU ms/window"),
        rows,
    )


def engine_limit(measured: Measured) -> float:
    """Windows a second of the bare model at its best batch size, median of the rounds; 0 when it was not measured."""
    batches = {one.batch for one in measured.engine}
    medians = [Spread.of(one.windows_per_second for one in measured.engine if one.batch == batch) for batch in batches]
    return max((spread.median for spread in medians if spread), default=0.0)


def remarks(measured: Measured) -> list[str]:
    """What a reader must know before believing the tables."""
    said = list(measured.failed)
    lost = sum(sample.lost for sample in measured.samples)
    if lost:
        said.append(f"{lost} requests were acknowledged and are not in the store: the figures of that system are void.")
    elsewhere = max((sample.elsewhere for sample in measured.samples), default=0.0)
    if elsewhere > FIFTH:
        said.append(f"Other programs used up to {elsewhere:.0%} of the machine during a slice: measure again, alone.")
    return said


def _groups(measured: Measured) -> Iterable[tuple[str, str, list[Sample]]]:
    """(load, system, its samples by round), loads in the order in which they were run."""
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for sample in measured.samples:
        grouped.setdefault((sample.load, sample.system), []).append(sample)
    systems = list(_in_order(sample.system for sample in measured.samples))
    for load in dict.fromkeys(sample.load for sample in measured.samples):
        for system in systems:
            if (load, system) in grouped:
                yield load, system, grouped[load, system]


def _in_order(keys: Iterable[str]) -> list[str]:
    """As they are listed, not as a round happened to begin."""
    present = set(keys)
    return [key for key in SYSTEMS if key in present]


def _spread(samples: list[Sample], of: Figure) -> str:
    return str(Spread.of(of(sample) for sample in samples) or NOTHING)


def _ratio(ours: list[Sample], theirs: list[Sample], of: Figure) -> str:
    def by_round(samples: list[Sample]) -> Mapping[int, float]:
        return {sample.round: of(sample) for sample in samples}

    return str(ratio(by_round(ours), by_round(theirs)) or NOTHING)


def _failures(samples: list[Sample]) -> str:
    failures = sum(sample.result.failures for sample in samples)
    lost = sum(sample.lost for sample in samples)
    asked = failures + sum(sample.result.acknowledged for sample in samples)
    return f"{failures} of {asked}" + (f", {lost} LOST" if lost else "") if failures or lost else "0"
