"""`nilm db`: the embedded store's file, beside a running service."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deployments.stores import StoreUnavailable
from deployments.stores.checks import TIME_NS_MAX, TIME_NS_MIN
from deployments.stores.sqlite_maintenance import TABLES, back_up, check_file, rows_of
from serve_app.cli.train import fail, require_tools
from serve_app.instants import parse_moment, to_ns
from serve_app.settings import DATABASE_NAME

db = typer.Typer(
    help="The embedded store: check it, back it up, export it, beside a running service.", no_args_is_help=True
)

DataDir = Annotated[Path, typer.Option(envvar="NILM_DATA_DIR", help="Data directory of the service.")]
MB = 1e6


class What(StrEnum):
    """What can be exported."""

    READINGS = "readings"
    PREDICTIONS = "predictions"


@db.command()
def check(data_dir: DataDir = Path(".nilm")) -> None:
    """Read the whole file and say what it holds. Ends with 1 when something is wrong with it."""
    path = _file(data_dir)
    with _reasons(), Console(stderr=True).status(f"reading {path}"):
        report = check_file(path)
    table = Table("of", "rows or MB", title=str(path))
    for name in ("buildings", "readings", "predictions", "replies", "journal_entries"):
        table.add_row(name.replace("_", " "), f"{getattr(report, name):,}")
    table.add_row("file", f"{report.file_bytes / MB:,.1f} MB")
    table.add_row("write-ahead log", f"{report.wal_bytes / MB:,.1f} MB")
    Console().print(table)
    if report.faults:
        fail("; ".join(report.faults) + ". Restore a backup (docs/operations.md).")
    typer.echo(f"whole, schema {report.schema_version}")


@db.command()
def backup(
    target: Annotated[Path, typer.Argument(help="The copy to make; it must not exist.")],
    data_dir: DataDir = Path(".nilm"),
) -> None:
    """Copy the file while the service runs. The copy is checked, and complete or not there at all."""
    path = _file(data_dir)
    if not target.parent.is_dir():
        fail(f"{target.parent} is not a folder")
    with _reasons(), Console(stderr=True).status(f"copying {path}"):
        try:
            back_up(path, target)
        except FileExistsError:
            fail(f"{target} exists; name another file")
    typer.echo(f"{target}: {target.stat().st_size / MB:,.1f} MB, checked")


@db.command()
def export(
    target: Annotated[Path, typer.Argument(help="A .csv or a .parquet file.")],
    what: Annotated[What, typer.Option(help="Which rows.")] = What.PREDICTIONS,
    building: Annotated[str | None, typer.Option(help="Only this building.")] = None,
    start: Annotated[
        str | None, typer.Option(help="From: ISO 8601 with offset, or a time before now like -30d.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Up to: like --start.")] = None,
    data_dir: DataDir = Path(".nilm"),
) -> None:
    """Write stored rows for other programs; times are nanoseconds since 1970, UTC, powers kW."""
    path = _file(data_dir)
    if target.suffix not in (".csv", ".parquet"):
        fail("name a file that ends in .csv or .parquet")
    if target.exists():
        fail(f"{target} exists; name another file")
    start_ns, stop_ns = TIME_NS_MIN, TIME_NS_MAX
    if start is not None:
        start_ns = moment_ns("--start", start)
    if end is not None:
        stop_ns = moment_ns("--end", end)
    unfinished = target.with_name(target.name + ".unfinished")
    shown = (TextColumn("{task.description}"), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    try:
        with _reasons(), Progress(SpinnerColumn(), *shown, console=Console(stderr=True)) as progress:
            task = progress.add_task(f"exporting {what.value}", total=None)
            with _sink(unfinished, target.suffix, TABLES[what.value]) as sink:
                rows = 0
                for chunk in rows_of(path, what.value, building, start_ns, stop_ns):
                    sink.write(chunk)
                    rows += len(chunk)
                    progress.update(task, completed=rows)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    typer.echo(f"{target}: {rows:,} rows")


class _Sink(Protocol):
    def write(self, rows: Sequence[tuple[Any, ...]]) -> None: ...


@contextmanager
def _sink(path: Path, suffix: str, columns: tuple[str, ...]) -> Iterator[_Sink]:
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            yield _CsvSink(writer)
        return
    require_tools()
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    kinds = {"time_ns": pa.int64()} | {
        name: pa.float64() for name in columns if name.endswith(("_kw", "_ms")) or name == "confidence"
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    with pq.ParquetWriter(path, schema) as writer:
        yield _ParquetSink(pa, schema, writer)


class _CsvSink:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._writer.writerows(rows)


class _ParquetSink:
    def __init__(self, arrow: Any, schema: Any, writer: Any) -> None:
        self._arrow, self._schema, self._writer = arrow, schema, writer

    def write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        columns = [list(column) for column in zip(*rows, strict=True)]
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))


def _file(data_dir: Path) -> Path:
    path = data_dir / DATABASE_NAME
    if not path.is_file():
        fail(f"{path} does not exist; with INFLUX_URL the predictions are in InfluxDB, which has tools of its own")
    return path


def moment_ns(option: str, text: str) -> int:
    """An option's ISO 8601 instant, or time before now, in ns since 1970; ends with one sentence when it is neither."""
    try:
        return to_ns(parse_moment(text, datetime.now(UTC)))
    except ValueError as error:
        fail(f"{option} {error}")


@contextmanager
def _reasons() -> Iterator[None]:
    """What keeps the store from being read, as one sentence."""
    try:
        yield
    except StoreUnavailable as failure:
        fail(failure.detail)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
