"""The command line of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.serving.systems import COMPARED, SYSTEMS

CONCURRENCY = (1, 8, 32, 64, 128)
QUICK_CONCURRENCY = (8, 64)
ROUNDS, QUICK_ROUNDS = 3, 1
SECONDS, QUICK_SECONDS = 5.0, 1.0


@dataclass(frozen=True)
class Options:
    """What was asked for. `seconds`: of one slice. `folder`: for databases; the system's temporary one if None."""

    systems: tuple[str, ...]
    rounds: int
    seconds: float
    concurrency: tuple[int, ...]
    model_version: str
    folder: Path | None
    json: Path | None
    markdown: Path | None


def chosen_options(arguments: Sequence[str] | None = None) -> Options:
    """Of the command line; exits with a usage line when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.serving", description="Compare what a request costs in several systems."
    )
    parser.add_argument("--systems", type=_systems, default=COMPARED, help=f"of {', '.join(SYSTEMS)}, with commas")
    parser.add_argument("--rounds", type=_positive, help=f"default {ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of one slice, at least 1; default {SECONDS:g}")
    parser.add_argument("--concurrency", type=_numbers, help="of the closed loops, with commas")
    parser.add_argument("--quick", action="store_true", help="one short round at two concurrencies, to see it work")
    parser.add_argument("--model-version", default="", help="of the kettle; the registry's active one if left out")
    parser.add_argument("--folder", type=Path, help="where the databases lie; a disk, or commits cost nothing")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    parser.add_argument("--markdown", type=Path, help="put the tables between the markers of this document")
    chosen = parser.parse_args(arguments)
    quick = chosen.quick
    seconds = chosen.seconds if chosen.seconds is not None else (QUICK_SECONDS if quick else SECONDS)
    if not seconds >= 1:
        parser.error("--seconds: wrk measures whole seconds, at least one")
    return Options(
        systems=chosen.systems,
        rounds=chosen.rounds or (QUICK_ROUNDS if quick else ROUNDS),
        seconds=seconds,
        concurrency=chosen.concurrency or (QUICK_CONCURRENCY if quick else CONCURRENCY),
        model_version=chosen.model_version,
        folder=chosen.folder,
        json=chosen.json,
        markdown=chosen.markdown,
    )


def _systems(text: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(key.strip() for key in text.split(",")))
    unknown = [key for key in keys if key not in SYSTEMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SYSTEMS)}")
    return keys


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_positive(one) for one in text.split(","))
