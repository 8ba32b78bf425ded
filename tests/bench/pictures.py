"""Pictures of a running service for the documentation: pages of the Ray dashboard, and a request as a trace.

    python -m tests.bench.pictures --folder docs/images

Starts the real service with all four appliances in production mode, sends windows of a made-up household, and takes
pictures of the dashboard with Debian's chromium (installed now, if this is root) and playwright (`pip install
playwright`, without its own browsers). In the pages, this machine's name and paths are replaced first. Of some traced
`/infer` requests the one of median length is drawn, a bar for each span. Asserts nothing about what it shows.
"""

from __future__ import annotations

import argparse
import importlib
import math
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image  # matplotlib needs it too

from models.signal import W_PER_KW
from serve_app.cli.cluster import PRODUCTION_MODE
from serve_app.demo.household import synthetic_household
from serve_app.demo.recording import Recording
from tests.integration.service import ROOT, Service, running_service, shape_of
from tests.servers.collector import Collector, ReceivedSpan, collector
from tests.servers.packages import PartsMissing, apt_install

APPLICATION = "nilm"
APPLIANCES = ("kettle", "dishwasher", "washing_machine", "microwave")
HOUSEHOLD_DAYS = 20
SAMPLES_PER_DAY = 1440
SEED = 7
BUILDINGS = 8
ROUNDS = 12
"""Requests of each appliance before anything is looked at: replicas and the store are warm then."""
RUNS_W = 100.0

TRACED = 20
TRACED_APPLIANCE = "kettle"
PAUSE_S = 0.25
"""Between traced requests: an ingress traces five a second, and none shall wait for the one before."""
SPANS_WITHIN_S = 30.0
REQUEST = "POST /infer"
STAGES = {REQUEST, "auth", "infer", "queue", "forward", "persist", "commit"}
NS_PER_MS = 1e6

CHROMIUM = Path("/usr/bin/chromium")
PACKAGES = ["chromium", "fonts-dejavu-core"]
BROWSER_OPTIONS = [
    "--no-sandbox",  # root has none
    "--disable-gpu",
    # Nothing but the pages: no updates, no services of its maker.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTH_PX, HEIGHT_PX, LONGEST_PX = 1400, 900, 1300
MARGIN_PX = 12
LOADED_MS = 60_000
SETTLED_MS = 6_000
"""The dashboard asks again every four seconds; CPU and memory of new processes come with the second answer."""
REDRAWN_MS = 1_000
PALETTES = (256, 128, 64, 32)
LARGEST_BYTES = 250_000

# Of Okabe and Ito's palette, like the other pictures: distinct for all common kinds of colour blindness.
DEPLOYMENT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
INK, GRID = "#222222", "#EEEEEE"
TRACE_WIDTH_IN, ROW_IN, AROUND_IN = 10.0, 0.36, 1.15
DPI = 120

REPLACE_TEXTS = """
pairs => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    let text = texts.currentNode.data;
    for (const [name, replacement] of pairs) text = text.replaceAll(name, replacement);
    if (text !== texts.currentNode.data) texts.currentNode.data = text;
  }
}
"""


@dataclass(frozen=True)
class Shot:
    """A page of the dashboard and how much of it is in the picture.

    Attributes:
        name: of the file, after `ray-dashboard-`.
        route: behind the `#` of the address.
        texts: they are there once the page has loaded.
        last: selector; the picture ends below the last element that it finds.
        hovered: selector; the mouse is over the third element that it finds.
    """

    name: str
    route: str
    texts: tuple[str, ...]
    last: str
    hovered: str | None = None
    width_px: int = WIDTH_PX

    @property
    def file_name(self) -> str:
        return f"ray-dashboard-{self.name}.png"


def main() -> None:
    """Start, send, draw, take pictures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, default=ROOT / "docs/images", help="where the pictures go")
    chosen = arguments.parse_args()
    start_playwright = playwright_or_end()
    install_browser()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    # Right below /tmp: whatever of its path is on a page says nothing about who made the picture.
    with tempfile.TemporaryDirectory(prefix="nilm-", dir="/tmp") as name, collector() as traces:
        environment = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }
        with running_service(Path(name), environment=PRODUCTION_MODE | environment) as service:
            windows = windows_by_appliance(service)
            send(service, windows)
            # Before there is a browser on the machine.
            draw(median_trace(service, traces, windows[TRACED_APPLIANCE]), chosen.folder / "trace.png")
            with start_playwright() as playwright:
                photograph(playwright, service, chosen.folder)
    for path in sorted((chosen.folder / "trace.png", *chosen.folder.glob("ray-dashboard-*.png"))):
        size_bytes = path.stat().st_size
        print(f"{path}: {size_bytes / 1000:.0f} kB" + (", too large" if size_bytes > LARGEST_BYTES else ""))


def playwright_or_end() -> Any:
    """What starts playwright. Imported by its name and untyped: no extra has it, and only these pictures want it."""
    try:
        return importlib.import_module("playwright.sync_api").sync_playwright
    except ImportError:
        raise SystemExit("pages of the dashboard need playwright: pip install playwright (not its browsers)") from None


def install_browser() -> None:
    """Unless it is there. Ends the program where that is impossible."""
    if CHROMIUM.exists():
        return
    try:
        apt_install(PACKAGES)
    except PartsMissing as missing:
        raise SystemExit(str(missing)) from None


def windows_by_appliance(service: Service) -> dict[str, list[list[float]]]:
    """Of a made-up household's mains in kW, as long as the version that serves wants them."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    recording = synthetic_household(SEED, start, 0, HOUSEHOLD_DAYS * SAMPLES_PER_DAY)
    with service.client() as client:
        return {name: windows_of(recording, name, shape_of(client, name)) for name in APPLIANCES}


def windows_of(recording: Recording, appliance: str, shape: Mapping[str, Any]) -> list[list[float]]:
    """In every second one the appliance runs at the sample that is answered for."""
    size, answered = int(shape["input_window_size"]), int(shape["output_sample_index"])
    mains_kw = np.round(recording.aggregate_w / W_PER_KW, 4)
    measured_w = recording.measured_w(appliance)
    assert measured_w is not None
    starts = np.arange(len(mains_kw) - size + 1)
    running = starts[measured_w[starts + answered] > RUNS_W]
    chance = np.random.default_rng(SEED)
    chosen = [int(chance.choice(starts if n % 2 else running)) for n in range(max(ROUNDS, TRACED))]
    return [mains_kw[start : start + size].tolist() for start in chosen]


def send(service: Service, windows: Mapping[str, Sequence[list[float]]]) -> None:
    """A load of all appliances. Not traced, so that the ingress may trace all that follow."""
    with service.client() as client:
        for n in range(ROUNDS):
            for name, of_appliance in windows.items():
                body = {"building_id": f"home-{n % BUILDINGS}", "appliance_id": name, "window": of_appliance[n]}
                untraced = {"traceparent": traceparent(secrets.token_hex(16), sampled=False)}
                client.post("/infer", json=body, headers=untraced).raise_for_status()


def median_trace(service: Service, traces: Collector, windows: Sequence[list[float]]) -> list[ReceivedSpan]:
    """The spans of the request that took the median time, of those whose spans have all arrived."""
    trace_ids = [secrets.token_hex(16) for _ in range(TRACED)]
    with service.client() as client:
        for n, trace_id in enumerate(trace_ids):
            time.sleep(PAUSE_S)
            body = {"building_id": f"home-{n % BUILDINGS}", "appliance_id": TRACED_APPLIANCE, "window": windows[n]}
            traced = {"traceparent": traceparent(trace_id, sampled=True)}
            client.post("/infer", json=body, headers=traced).raise_for_status()
    give_up_s = time.monotonic() + SPANS_WITHIN_S
    while len(whole := whole_traces(traces, trace_ids)) < TRACED and time.monotonic() < give_up_s:
        time.sleep(0.2)
    assert whole, f"no trace arrived whole: {sorted({span.name for span in traces.spans})}"
    whole.sort(key=lambda spans: took_ms(request_of(spans)))
    print(f"{len(whole)} of {TRACED} traces arrived whole; requests took", end=" ")
    print(f"{took_ms(request_of(whole[0])):.1f} to {took_ms(request_of(whole[-1])):.1f} ms")
    return whole[len(whole) // 2]


def whole_traces(traces: Collector, trace_ids: Sequence[str]) -> list[list[ReceivedSpan]]:
    """Those with all stages."""
    found = [traces.of(trace_id) for trace_id in trace_ids]
    return [spans for spans in found if {span.name for span in spans} >= STAGES]


def traceparent(trace_id: str, *, sampled: bool) -> str:
    """W3C Trace Context, of a client that traces this request or does not."""
    return f"00-{trace_id}-{secrets.token_hex(8)}-{sampled:02x}"


def request_of(spans: Sequence[ReceivedSpan]) -> ReceivedSpan:
    """The span that all others belong to."""
    return next(span for span in spans if span.name == REQUEST)


def took_ms(span: ReceivedSpan) -> float:
    return (span.end_ns - span.start_ns) / NS_PER_MS


def with_depth(spans: Sequence[ReceivedSpan], span: ReceivedSpan, depth: int = 0) -> Iterator[tuple[int, ReceivedSpan]]:
    """A span and what is below it, each with its depth; siblings by their beginning."""
    yield depth, span
    below = [one for one in spans if one.parent_id == span.span_id]
    for one in sorted(below, key=lambda child: child.start_ns):
        yield from with_depth(spans, one, depth + 1)


def draw(spans: Sequence[ReceivedSpan], path: Path) -> None:
    """A row for each span, from its beginning to its end; the colour is the deployment that it was in."""
    request = request_of(spans)
    rows = list(with_depth(spans, request))
    colours = dict(zip(dict.fromkeys(span.deployment for _, span in rows), DEPLOYMENT_COLOURS, strict=False))
    figure = Figure(figsize=(TRACE_WIDTH_IN, AROUND_IN + ROW_IN * len(rows)), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    height_in = figure.get_figheight()
    axes = figure.subplots()
    figure.subplots_adjust(left=0.16, right=0.98, top=1 - 0.55 / height_in, bottom=0.55 / height_in)
    all_ms = took_ms(request)
    for row, (depth, span) in enumerate(rows):
        began_ms = (span.start_ns - request.start_ns) / NS_PER_MS
        colour = colours[span.deployment]
        # The edge keeps a bar of a few microseconds visible.
        axes.barh(row, took_ms(span), left=began_ms, height=0.62, color=colour, edgecolor=colour, linewidth=0.8)
        axes.text(began_ms + took_ms(span) + 0.008 * all_ms, row, f"{took_ms(span):.2f} ms", va="center", fontsize=9)
        # In shares of the axes' width, to the left of them.
        axes.text(-0.18 + 0.022 * depth, row, span.name, transform=axes.get_yaxis_transform(), va="center", color=INK)
    axes.set_xlim(0, 1.12 * all_ms)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds since the request began")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(f"One window of a {TRACED_APPLIANCE}, answered in {all_ms:.1f} ms", loc="left", fontsize=11, x=-0.18)
    handles = [Patch(color=colour, label=f"deployment {name}") for name, colour in colours.items()]
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False, fontsize=9
    )
    figure.savefig(path, metadata={"Software": None})
    shrink(path)


def photograph(playwright: Any, service: Service, folder: Path) -> None:
    """Every page, each in a tab of its own."""
    url, token = service.dashboard
    browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=BROWSER_OPTIONS)
    try:
        context = browser.new_context(color_scheme="light", locale="en-GB", timezone_id="UTC")
        # What the dashboard's own dialog does: the reply sets the cookie that all requests of its pages need. A header
        # set for the whole browser would take the token to wherever else a page turns.
        answer = context.request.post(f"{url}/api/authenticate", headers={"Authorization": f"Bearer {token}"})
        assert answer.ok, f"{answer.status}: {answer.text()}"
        replica_id = service.deployments()["ingress"]["replicas"][0]["replica_id"]
        for shot in shots(replica_id):
            take(context, url, shot, folder / shot.file_name)
    finally:
        browser.close()


def shots(replica_id: str) -> tuple[Shot, ...]:
    """`replica_id`: of an ingress, because it writes a line for each request."""
    application = f"/serve/applications/{APPLICATION}"
    log_button = ".log-line-details-btn"
    return (
        Shot("serve", "/serve", ("Controller status", "washing_machine"), "tbody tr"),
        Shot("application", application, ("washing_machine",), "tbody tr"),
        Shot("replica", f"{application}/ingress/{replica_id}", ("Show details",), "div.hljs-light", log_button),
        # Its table has fifteen columns.
        Shot("cluster", "/cluster", (f"ServeReplica:{APPLICATION}:kettle",), "tbody tr", width_px=1800),
    )


def take(context: Any, url: str, shot: Shot, path: Path) -> None:
    """Loads the page, makes the window as high as what is wanted of it, and takes the picture."""
    page = context.new_page()
    page.set_viewport_size({"width": shot.width_px, "height": HEIGHT_PX})
    page.goto(f"{url}/#{shot.route}")
    for text in shot.texts:
        page.get_by_text(text).first.wait_for(timeout=LOADED_MS)
    page.wait_for_timeout(SETTLED_MS)
    box = page.locator(shot.last).last.bounding_box()
    assert box is not None, f"{shot.last} is not on {shot.route}"
    end_px = math.ceil(box["y"] + box["height"]) + MARGIN_PX
    page.set_viewport_size({"width": shot.width_px, "height": min(end_px, LONGEST_PX)})
    page.wait_for_timeout(REDRAWN_MS)
    if shot.hovered is not None:
        # Forced: what appears under the mouse takes no clicks before, which playwright would wait for.
        page.locator(shot.hovered).nth(2).hover(force=True)
    # Last of all, because the page draws itself anew with each answer.
    page.evaluate(REPLACE_TEXTS, hidden_texts())
    page.screenshot(path=str(path), animations="disabled")
    page.close()
    shrink(path)


def hidden_texts() -> list[list[str]]:
    """How this machine calls things, and what stands there instead. Longest first: one may be the start of another."""
    names = {str(ROOT): "nilm-serve", sys.prefix: "venv", socket.gethostname(): "node"}
    if Path.home() != Path("/"):
        names[str(Path.home())] = "~"
    return sorted(([name, instead] for name, instead in names.items()), key=lambda pair: len(pair[0]), reverse=True)


def shrink(path: Path) -> None:
    """As many colours as fit: there are few, and a repository keeps every version of a picture."""
    with Image.open(path) as picture:
        full = picture.convert("RGB")
    for colours in PALETTES:
        full.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST_BYTES:
            return


if __name__ == "__main__":
    main()
