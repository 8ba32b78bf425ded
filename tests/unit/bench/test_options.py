"""The command line of the benchmark, and that its systems are who they say."""

from __future__ import annotations

import pytest

from tests.bench.serving.options import CONCURRENCY, chosen_options
from tests.bench.serving.systems import COMPARED, OURS, SYSTEMS


def test_without_arguments_it_is_the_full_run() -> None:
    options = chosen_options([])
    assert (options.systems, options.rounds, options.seconds) == (COMPARED, 3, 5.0)
    assert options.concurrency == CONCURRENCY == (1, 8, 32, 64, 128)
    assert OURS in COMPARED


def test_a_quick_run_is_short_and_still_listens() -> None:
    options = chosen_options(["--quick", "--systems", "naive,tuned", "--concurrency", "1"])
    assert (options.systems, options.rounds, options.seconds) == (("naive", "tuned"), 1, 1.0)
    assert options.concurrency == (1,)


@pytest.mark.parametrize(
    "arguments",
    [["--systems", "naive,none"], ["--rounds", "0"], ["--seconds", "0.5"], ["--concurrency", "8,x"]],
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        chosen_options(arguments)


def test_a_missing_package_is_named() -> None:
    assert SYSTEMS["naive"].missing == []
    assert all(system.key == key for key, system in SYSTEMS.items())
