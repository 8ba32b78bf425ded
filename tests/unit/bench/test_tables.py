"""From measurements to figures, tables and the generated part of a document."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.bench.serving.load import LoadResult
from tests.bench.serving.machine import filesystem
from tests.bench.serving.markdown import BEGIN, END, MarkersMissing, markdown, replace_block, write_block
from tests.bench.serving.samples import EnginePass, Footprint, Measured, Sample
from tests.bench.serving.spread import Spread, figure, ratio
from tests.bench.serving.tables import (
    Table,
    all_tables,
    batch_table,
    engine_limit,
    main_table,
    process_table,
    ratio_table,
    remarks,
)


def sample(
    system: str, number: int, per_second: float, *, load: str = "c=64", lost: int = 0, failures: int = 0
) -> Sample:
    acknowledged = round(per_second * 2)
    result = LoadResult(acknowledged, failures, 2.0, 10.0 * number, 20.0, 30.0, 0.1)
    return Sample(system, number, load, result, {"worker": 1.0, "gcs_server": 0.5}, 0.0, lost)


@pytest.fixture
def measured() -> Measured:
    rates = {"production": (1000, 1200, 900), "naive": (500, 400, 450)}
    samples = [sample(key, n, rates[key][n]) for n in range(3) for key in rates]
    footprints = [Footprint(key, 0, 500.0, 0.25, 12.0) for key in rates]
    engine = [EnginePass(n, batch, rate + n) for n in range(3) for batch, rate in ((1, 250.0), (64, 1000.0))]
    return Measured({"cores": "2"}, {"rounds": "3"}, samples, footprints, engine)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (4.567, "4.57"), (83.21, "83.2"), (1240.4, "1,240"), (float("inf"), "inf")],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_spread_is_the_median_and_its_bounds() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert str(Spread.of([3.0, 1.0, 2.0])) == "2.00 (1.00-3.00)"
    assert str(Spread.of([2.0])) == "2.00"
    assert Spread.of([float("nan")]) is None


def test_a_ratio_is_of_the_same_round_not_of_medians() -> None:
    spread = ratio({0: 10.0, 1: 40.0, 2: 90.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert spread == Spread(2.0, 1.0, 3.0)
    assert ratio({0: 1.0, 5: 8.0}, {5: 2.0}) == Spread(4.0, 4.0, 4.0)
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert ratio({0: 1.0}, {0: 0.0}) is None


def test_the_main_table_shows_the_share_of_what_the_bare_model_can_do(measured: Measured) -> None:
    assert engine_limit(measured) == 1001
    naive, ours = main_table(measured).rows
    assert naive[:3] == ("c=64", "naive monolith", "450 (400-500)")
    assert ours[:3] == ("c=64", "this system, production", "1,000 (900-1,200)")
    assert ours[6] == "100%"
    assert ours[5] == "0.750 (0.625-0.833)"
    assert ours[7] == "0"


def test_requests_of_many_windows_have_a_table_of_their_own(measured: Measured) -> None:
    batches = dataclasses.replace(sample("production", 0, 4, load="batches of 256, c=4"), windows_each=256)
    measured.samples = [batches]
    assert main_table(measured).rows == []
    ((_, _, windows_per_second, *_, cpu_ms, share, failures),) = batch_table(measured).rows
    assert (windows_per_second, share, failures) == ("1,024", "102%", "0")
    assert cpu_ms == figure(1500 / (8 * 256))


def test_ours_is_set_against_each_other_system(measured: Measured) -> None:
    (row,) = ratio_table(measured).rows
    assert row[:3] == ("c=64", "naive monolith", "2.00 (2.00-3.00)")


def test_cpu_time_is_shown_by_process_the_dearest_first(measured: Measured) -> None:
    rows = [row[:2] for row in process_table(measured).rows]
    assert rows[:2] == [("naive monolith", "worker"), ("naive monolith", "gcs_server")]


def test_processes_that_use_next_to_nothing_share_a_row(measured: Measured) -> None:
    one = sample("naive", 0, 100)
    measured.samples = [dataclasses.replace(one, cpu_s={"worker": 1.0, "agent": 0.004, "raylet": 0.002})]
    assert process_table(measured).rows == [
        ("naive monolith", "worker", "5.00"),
        ("naive monolith", "2 more", "0.0300"),
    ]


def test_an_open_loop_has_no_ratio_of_rates(measured: Measured) -> None:
    measured.samples = [sample(key, 0, 100, load="open, 50% of capacity") for key in ("naive", "production")]
    assert [row[2] for row in ratio_table(measured).rows] == ["-"]


def test_another_load_than_usual_is_profiled_where_that_is_all_there_is(measured: Measured) -> None:
    measured.samples = [sample("naive", 0, 100, load="c=8"), sample("naive", 0, 50, load="open, 50% of capacity")]
    assert process_table(measured).title == "CPU time by process, c=8"


def test_failures_and_lost_predictions_are_in_the_table_and_said_first(measured: Measured) -> None:
    measured.samples = [sample("naive", 0, 100, lost=3, failures=7)]
    assert main_table(measured).rows[0][7] == "7 of 207, 3 LOST"
    assert "3 requests were acknowledged and are not in the store" in remarks(measured)[0]


def test_an_empty_run_has_no_tables() -> None:
    assert all_tables(Measured({}, {})) == []
    assert remarks(Measured({}, {})) == []


def test_everything_is_in_the_json(measured: Measured, tmp_path: Path) -> None:
    measured.write_json(tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text())
    assert len(read["samples"]) == 6
    assert read["samples"][0]["result"]["acknowledged"] == 2000
    assert read["machine"] == {"cores": "2"}


def test_markdown_tables_have_a_row_a_line_and_keep_their_bars() -> None:
    text = markdown([Table("T", "note", ("a", "b"), [("1|2", "3")])], {"cores": "2"}, ["beware"])
    assert text.startswith("**beware**\n\n### T\n\nnote\n\n| a | b |\n| --- | --- |\n| 1\\|2 | 3 |")
    assert text.endswith("### Measured on\n\n|  |  |\n| --- | --- |\n| cores | 2 |")


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    write_block(path, "new")
    assert path.read_text() == f"# Before\n\n{BEGIN}\n\nnew\n\n{END}\n\nAfter.\n"
    write_block(path, "new")
    assert path.read_text() == f"# Before\n\n{BEGIN}\n\nnew\n\n{END}\n\nAfter.\n"


@pytest.mark.parametrize("document", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}", f"{BEGIN}{END}{END}"])
def test_a_document_without_the_two_markers_is_refused(document: str) -> None:
    with pytest.raises(MarkersMissing):
        replace_block(document, "new")


def test_the_published_document_has_the_markers() -> None:
    replace_block((Path(__file__).parents[3] / "docs/performance.md").read_text(encoding="utf-8"), "new")


def test_the_file_system_is_that_of_the_closest_mount() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\ntmpfs /tmpfiles xfs rw 0 0\n"
    assert filesystem(Path("/tmp/x"), mounts) == "tmpfs"  # noqa: S108 - never created
    assert filesystem(Path("/var/x"), mounts) == "ext4"
