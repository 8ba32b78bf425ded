"""`nilm demo`: stream a household through the running service, minute by minute, and draw the day.

Wires the parts in `serve_app.demo` together and decides the exit status: 0 when at least one prediction was
acknowledged and nothing ended the run early, 1 otherwise, 2 when it could not start.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from models.signal import W_PER_KW
from serve_app.access.development import in_production, mint_development_token, read_development_secret
from serve_app.access.development_grants import grant_development_access, grants_come_from_this_file
from serve_app.access.grants import GrantSourceError
from serve_app.demo.client import Contract, ServiceClient, is_loopback
from serve_app.demo.errors import DemoError, ServiceError
from serve_app.demo.household import SAMPLE_PERIOD_S, synthetic_household
from serve_app.demo.live import LiveView
from serve_app.demo.plot import draw, require_matplotlib
from serve_app.demo.recording import Plan, Recording, plan_windows
from serve_app.demo.results import Results, label
from serve_app.demo.source import read_recording
from serve_app.demo.stream import Pace, stream
from serve_app.settings import DEVELOPMENT_ISSUER

DEVELOPMENT_USER = "demo-user"
_TOKEN_MINUTES = 120  # a day at the default quota of 60 a minute takes 24 minutes
_MAX_TOKEN_MINUTES = 7 * 24 * 60


@dataclass(frozen=True)
class Options:
    """What the command line asked for; `hours` is the length of the predicted stretch."""

    url: str
    token: str | None
    source: Path | None
    building_id: str
    start: datetime | None
    hours: float
    out: Path
    rate: str
    seed: int
    data_dir: Path


def demo(
    *,
    url: Annotated[str, typer.Option(envvar="NILM_URL", help="Where the service listens.")] = "http://127.0.0.1:8000",
    token: Annotated[
        str | None,
        typer.Option(envvar="NILM_TOKEN", help="Access token; without one, a local service gets a development token."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="A recording (.csv or .parquet) with a time and a mains column; default: synthetic.",
        ),
    ] = None,
    building: Annotated[str, typer.Option(help="Building to store the predictions under.")] = "demo-home",
    start: Annotated[
        str | None, typer.Option(help="First predicted instant, ISO 8601; UTC where it has no offset.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.02, max=24 * 31, help="Hours to predict.")] = 24.0,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("demo/disaggregation.png"),
    rate: Annotated[
        str, typer.Option(help="`max`, `realtime`, or how many times real time: 60 is an hour a minute.")
    ] = "max",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic household.")] = 1,
    data_dir: Annotated[
        Path,
        typer.Option(envvar="NILM_DATA_DIR", help="Data directory of the local service, for its secret."),
    ] = Path(".nilm"),
) -> None:
    """Send a day of mains power to the service, watch the appliances appear, and draw the result."""
    console, complaints = Console(), Console(stderr=True)
    try:
        options = Options(url, token, source, building, _instant(start), hours, out, rate, seed, data_dir)
        require_matplotlib()
        access_token = token or _development_token(options)
        results, interrupted = asyncio.run(_run(options, access_token, console))
        if results.acknowledged:
            draw(results, building, out)
    except DemoError as error:
        complaints.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if results.sent:
        _summarise(console, results, out)
    if interrupted:
        complaints.print(interrupted, style="red", highlight=False, markup=False, soft_wrap=True)
    if interrupted or not results.acknowledged:
        raise typer.Exit(1)


async def _run(options: Options, token: str, console: Console) -> tuple[Results, str | None]:
    """The results, and the sentence that says why the service ended the run early, if it did."""

    def say(seconds: float, reason: str) -> None:
        console.print(f"waiting {seconds:.0f} s: {reason}", highlight=False, markup=False)

    async with ServiceClient(options.url, token, say) as client:
        contract = await client.contract()
        try:
            pace = Pace.parse(options.rate, contract.sample_period_s)
        except ValueError as error:
            raise DemoError(f"--rate is `max`, `realtime` or a positive number, not {options.rate!r}.") from error
        recording, plan = _prepare(options, contract)
        results = Results(recording, plan, contract.appliances)
        stop = asyncio.Event()
        with LiveView(console, results) as view, _stop_on_interrupt(stop):
            client.set_on_wait(view.waiting)
            try:
                async for outcome in stream(client, options.building_id, plan.windows, pace, stop):
                    results.add(outcome)
                    view.show(outcome)
            except ServiceError as error:
                return results, str(error)
        return results, None


def _prepare(options: Options, contract: Contract) -> tuple[Recording, Plan]:
    """The household and what to send of it."""
    start = options.start
    if options.source is not None:
        recording = read_recording(options.source, contract.sample_period_s)
    else:
        if contract.sample_period_s != SAMPLE_PERIOD_S:
            raise DemoError(
                f"The synthetic household has one sample every {SAMPLE_PERIOD_S} s, but the service wants one "
                f"every {contract.sample_period_s} s: pass a recording with --input."
            )
        # Yesterday: a whole day that no service can think lies in the future.
        start = start or datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
        ahead = contract.window_size - 1 - contract.output_index
        samples = max(1, round(options.hours * 3600 / SAMPLE_PERIOD_S)) + ahead
        recording = synthetic_household(options.seed, start, contract.output_index, samples)
    return recording, plan_windows(recording, contract.window_size, contract.output_index, start, options.hours)


@contextmanager
def _stop_on_interrupt(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C asks the run to end, a second one ends it the hard way."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (NotImplementedError, RuntimeError):  # Windows, or not the main thread: Ctrl-C stays as it is
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise DemoError(f"--start is an ISO 8601 instant such as 2013-06-01T00:00+00:00, not {text!r}.") from error
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _development_token(options: Options) -> str:
    """A token for the service of this data directory; never sent to another machine."""
    try:
        host = httpx.URL(options.url).host
    except httpx.InvalidURL as error:
        raise DemoError(f"{options.url!r} is not a URL.") from error
    if not is_loopback(host):
        raise DemoError(f"A development token is only sent to this machine: pass --token or NILM_TOKEN for {host}.")
    if in_production():
        raise DemoError("ENV is production: pass a token of the identity provider with --token or NILM_TOKEN.")
    if not grants_come_from_this_file():
        raise DemoError("SUPABASE_URL is set: pass a token of one of its users with --token, and --building of theirs.")
    secret = read_development_secret(options.data_dir)
    if secret is None:
        raise DemoError(
            f"No token, and {options.data_dir} has no development secret: start the service with `nilm run`, "
            "or pass --token or NILM_TOKEN."
        )
    minutes = _TOKEN_MINUTES
    if options.rate.strip().lower() != "max":  # a slow replay outlives the usual token
        minutes = min(_MAX_TOKEN_MINUTES, max(minutes, round(options.hours * 60 + 60)))
    try:
        grant_development_access(options.data_dir, DEVELOPMENT_USER, [options.building_id])
    except (ValueError, GrantSourceError) as error:
        raise DemoError(f"The building cannot be granted: {error}.") from None
    return mint_development_token(secret, DEVELOPMENT_USER, minutes, DEVELOPMENT_ISSUER)


def _summarise(console: Console, results: Results, out: Path) -> None:
    """The closing table and counts."""
    table = Table(title=results.recording.title)
    table.add_column("appliance")
    for heading in ("predicted kWh", f"{results.recording.truth} kWh", "MAE W", "always-off MAE W"):
        table.add_column(heading, justify="right")
    for summary in results.summaries():
        table.add_row(
            label(summary.appliance_id),
            f"{summary.predicted_kwh:.3f}",
            _number(summary.measured_kwh, 3),
            _number(summary.mae_w, 1),
            _number(summary.always_off_mae_w, 1),
        )
    table.add_section()
    table.add_row("Unattributed", f"{results.energy_kwh(results.unattributed_kw):.3f}", "", "", "")
    table.add_row("Mains", "", f"{results.energy_kwh(results.recording.aggregate_w / W_PER_KW):.3f}", "", "")
    console.print(table)
    counts = (
        f"sent {results.sent}, acknowledged {results.acknowledged}, skipped {results.skipped} "
        f"(mains missing), failed {results.failed}"
    )
    console.print(counts, highlight=False)
    if results.acknowledged:
        console.print(f"picture: {out}", highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
