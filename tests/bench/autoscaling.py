"""Autoscaling by appliance: replicas over time, while one of two appliances gets much more to do and then no more.

    python -m tests.bench.autoscaling --plot docs/images/autoscaling.png

Starts this service in its production mode with two appliances, whose `autoscaling_config` is that of serve_config.yaml.
Each gets a few requests a second throughout (open loop); beyond those, `--clients` ask the kettle (closed loop):

- step: until its second replica has run for 20 s, at most for 150; then not, until that replica is given back;
- sawtooth: for 20 s of each 40, during `--sawtooth-minutes`.

Looks once a second at how many replicas run and are wanted, by Serve's REST API, and every three seconds at the windows
that wait or run, by `GET /metrics`. Prints a table and draws the replicas. Takes 20 minutes with the delays of that
file. Asserts nothing.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.registry import Registry
from serve_app.access.development_grants import grant_development_access
from serve_app.cli.cluster import PRODUCTION_MODE
from tests.bench.serving.connections import Connections, Reply
from tests.bench.serving.open_loop import schedule
from tests.bench.serving.request_set import http_requests, infer_requests
from tests.bench.serving.systems import OUT_OF_THE_WAY, USER, access_token
from tests.integration.service import FIGURES_LATE_S, FRESH_FIGURES, Service, running_service, service_config

KETTLE, INGRESS = "kettle", "ingress"
APPLIANCES = (KETTLE, "microwave")
WATCHED = (*APPLIANCES, INGRESS)
RUNNING = "RUNNING"
"""Of a replica that takes requests: not one that starts, nor one that still answers its last."""
LOOK_EVERY_S = 1.0
WINDOWS_EVERY_S = 3.0
"""So often Ray's agent is told, see FRESH_FIGURES; what it says may be FIGURES_LATE_S old."""
CALM_S = 30.0
CALM_CONNECTIONS = 8
"""So few that each is used within a second or two: one that is idle for long may be closed under a request."""
LONGEST_LOAD_S = 150.0
KEPT_S = 20.0
GIVEN_BACK_S = 90.0
"""After `downscale_delay_s`, at most: until the mean of the last half a minute is down, and Serve has acted."""
HALF_PERIOD_S = 20.0
PERIOD_S = 2 * HALF_PERIOD_S
PATIENCE_S = 15.0
"""For the last replies. The service answers within 10 s, whatever it says."""
REFILL_S = 0.002
"""How long a client may rest between its reply and its next request."""
COLOURS = {KETTLE: "#D55E00", "microwave": "#0072B2", INGRESS: "#444444"}
"""Of Okabe and Ito's palette: distinct for all common kinds of colour blindness."""
APART = {KETTLE: 0.0, "microwave": -0.07, INGRESS: 0.07}
"""In replicas, so that lines at the same height are all seen."""
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Look:
    """Replicas that run and that Serve wants, by deployment, at an instant of `time.monotonic()`."""

    at_s: float
    running: Mapping[str, int]
    wanted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Held:
    """Windows that wait at the ingress or are in a replica, by appliance, at an instant of `time.monotonic()`."""

    at_s: float
    windows: Mapping[str, float]


Seen = TypeVar("Seen", Look, Held)


@dataclass(frozen=True)
class Part:
    """A stretch of the run, and from when to when the clients were there; all by `time.monotonic()`."""

    name: str
    title: str
    began_s: float
    loads: tuple[tuple[float, float], ...]
    ended_s: float

    def of(self, seen: Sequence[Seen]) -> list[Seen]:
        """What was seen in it."""
        return [one for one in seen if self.began_s <= one.at_s < self.ended_s]

    def loaded(self, at_s: float) -> bool:
        """Whether the clients were there, and had been for as long as a figure may be late."""
        return any(began_s + FIGURES_LATE_S <= at_s < ended_s for began_s, ended_s in self.loads)

    def minutes(self, at_s: float) -> float:
        """Since its beginning."""
        return (at_s - self.began_s) / 60


class Observer:
    """Looks at the service from two threads of its own, so that a slow answer of `/metrics` holds up nothing."""

    def __init__(self, service: Service) -> None:
        self.looks: list[Look] = []
        self.held: list[Held] = []
        self.missed: Counter[str] = Counter()
        self._service = service
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=(LOOK_EVERY_S, self._look, "replicas"), daemon=True),
            threading.Thread(target=self._every, args=(WINDOWS_EVERY_S, self._look_at_windows, "windows"), daemon=True),
        ]

    def __enter__(self) -> Self:
        self._look()  # whoever asks for the last look finds one
        for one in self._threads:
            one.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for one in self._threads:
            one.join()

    def since_s(self, name: str, replicas: int) -> float:
        """Since when at least so many have been seen to run without a break; infinity when there are fewer now."""
        since_s = math.inf
        for look in reversed(self.looks):
            if look.running[name] < replicas:
                break
            since_s = look.at_s
        return since_s

    def _every(self, seconds: float, look: Callable[[], None], what: str) -> None:
        next_s = time.monotonic()
        while not self._over.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + seconds, time.monotonic())
            try:
                look()
            except (httpx.HTTPError, AssertionError, KeyError, ValueError):
                self.missed[what] += 1  # too busy to answer, or not all is told yet: the next one will see

    def _look(self) -> None:
        deployments = self._service.deployments()
        running = {name: sum(one["state"] == RUNNING for one in deployments[name]["replicas"]) for name in WATCHED}
        wanted = {name: int(deployments[name]["target_num_replicas"]) for name in WATCHED}
        self.looks.append(Look(time.monotonic(), running, wanted))

    def _look_at_windows(self) -> None:
        told = self._service.figures()
        windows = {
            name: told.value("nilm_replica_windows", appliance=name)
            + told.value("nilm_windows_waiting", appliance=name)
            for name in APPLIANCES
        }
        self.held.append(Held(time.monotonic(), windows))


class Clients:
    """`count` of them, who ask the kettle again as soon as they are answered, whenever they are let.

    Not by wrk: it says neither which status a reply had nor when it came, and takes a quarter of a second to begin.
    """

    def __init__(self, address: Address, requests: Sequence[bytes], count: int) -> None:
        self.count = count
        self.replies: list[Reply] = []
        self._address = address
        self._requests = cycle(requests)

    def ask_until(self, over: Callable[[], bool]) -> tuple[float, float]:
        """From when to when they did. The replies to the last requests are waited for after that."""
        with Connections(*self._address, self.count) as pool:
            began_s = time.monotonic()
            sent = 0
            while not over():
                for _ in range(self.count - sent + len(pool.replies)):
                    pool.send(next(self._requests), time.monotonic())
                    sent += 1
                time.sleep(REFILL_S)
            ended_s = time.monotonic()
            say_unanswered(pool.wait(PATIENCE_S))
            self.replies += pool.replies
        return began_s, ended_s


def main() -> None:
    """Start, load, print, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plot", type=Path, help="a PNG to draw; none unless named")
    arguments.add_argument("--clients", type=int, default=192, help="of the kettle; an ingress lets 256 requests in")
    arguments.add_argument("--calm-per-second", type=float, default=5.0, help="requests to each appliance throughout")
    arguments.add_argument("--sawtooth-minutes", type=float, default=10.0)
    arguments.add_argument("--upscale-delay-s", type=float, help="default: what serve_config.yaml says")
    arguments.add_argument("--downscale-delay-s", type=float, help="default: what serve_config.yaml says")
    chosen = arguments.parse_args()
    if chosen.plot is not None:
        chosen.plot.parent.mkdir(parents=True, exist_ok=True)
    delays = {"upscale_delay_s": chosen.upscale_delay_s, "downscale_delay_s": chosen.downscale_delay_s}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "serve_config.yaml"
        scaling = write_config(config, {name: value for name, value in delays.items() if value is not None})
        print(f"{KETTLE}: {scaling}", flush=True)
        with running_service(folder, config, {**PRODUCTION_MODE, **OUT_OF_THE_WAY, **FRESH_FIGURES}) as service:
            grant_development_access(service.data_dir, USER, ("*",))
            with Observer(service) as observer:
                parts, replies = load(service, folder, observer, scaling["downscale_delay_s"], chosen)
    report(parts, observer, replies)
    if chosen.plot is not None:
        draw(chosen.plot, parts, observer, scaling["target_ongoing_requests"])


def write_config(path: Path, delays: Mapping[str, float]) -> dict[str, Any]:
    """serve_config.yaml with our appliances alone and these delays; gives the `autoscaling_config` of the kettle."""
    versions = {name: {"stable": Registry.load().active(name).model_version} for name in APPLIANCES}
    service_config(path, appliances=list(APPLIANCES), plans=versions)
    document = yaml.safe_load(path.read_text())
    scaling: dict[str, dict[str, Any]] = {}
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] in APPLIANCES:
            deployment["autoscaling_config"] |= delays
            scaling[deployment["name"]] = deployment["autoscaling_config"]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return scaling[KETTLE]


def load(
    service: Service, folder: Path, observer: Observer, downscale_delay_s: float, chosen: argparse.Namespace
) -> tuple[list[Part], dict[str, list[Reply]]]:
    """Both parts, with a few requests to everybody beside them. Gives the replies of each appliance as well."""
    url = urlsplit(service.url)
    address = url.hostname or "", url.port or 80
    requests = {name: requests_of(name, folder / name, address) for name in APPLIANCES}
    clients = Clients(address, requests[KETTLE], chosen.clients)
    over = threading.Event()
    with ThreadPoolExecutor(len(APPLIANCES)) as threads:
        calm = {
            name: threads.submit(ask_calmly, address, requests[name], chosen.calm_per_second, seed, over)
            for seed, name in enumerate(APPLIANCES)
        }
        try:
            parts = [step(observer, clients, downscale_delay_s), sawtooth(clients, chosen.sawtooth_minutes)]
        finally:
            over.set()
    replies = {name: future.result() for name, future in calm.items()}
    replies[KETTLE] += clients.replies
    return parts, replies


def requests_of(appliance_id: str, file: Path, address: Address) -> list[bytes]:
    """`/infer` of windows as long as its active version takes."""
    samples = Registry.load().active(appliance_id).input_window_size
    infer_requests(access_token(), appliance_id, samples).write(file)
    host, port = address
    return http_requests(file, f"{host}:{port}")


def ask_calmly(
    address: Address, requests: Sequence[bytes], per_second: float, seed: int, over: threading.Event
) -> list[Reply]:
    """Open loop."""
    with Connections(*address, CALM_CONNECTIONS) as pool:
        began_s = time.monotonic()
        for request, instant_s in zip(cycle(requests), schedule(per_second, math.inf, seed), strict=False):
            due_s = began_s + instant_s
            if over.wait(max(0.0, due_s - time.monotonic())):
                break
            pool.send(request, due_s)
        say_unanswered(pool.wait(PATIENCE_S))
        return list(pool.replies)


def say_unanswered(requests: int) -> None:
    """They are in no row of the table: which ones they were is not known."""
    if requests:
        print(f"{requests} requests were never answered", flush=True)


def step(observer: Observer, clients: Clients, downscale_delay_s: float) -> Part:
    """Calm, the clients until one replica more has run for a while, calm until it is given back."""
    began_s = time.monotonic()
    time.sleep(CALM_S)
    before = observer.looks[-1].running[KETTLE]
    give_up_s = time.monotonic() + LONGEST_LOAD_S

    def enough() -> bool:
        now_s = time.monotonic()
        return now_s - observer.since_s(KETTLE, before + 1) >= KEPT_S or now_s >= give_up_s

    def given_back() -> bool:
        last = observer.looks[-1]
        return max(last.running[KETTLE], last.wanted[KETTLE]) <= before

    loaded = clients.ask_until(enough)
    print(f"step: {loaded[1] - loaded[0]:.0f} s of load, {observer.looks[-1].running[KETTLE]} replicas", flush=True)
    wait_until(given_back, downscale_delay_s + GIVEN_BACK_S)
    time.sleep(CALM_S)
    print(f"step: {observer.looks[-1].running[KETTLE]} replicas at its end", flush=True)
    return Part("step", f"Step: {clients.count} clients of the kettle", began_s, (loaded,), time.monotonic())


def sawtooth(clients: Clients, minutes: float) -> Part:
    """The clients come and go."""
    began_s = time.monotonic()
    loads = []
    for number in range(max(1, round(60 * minutes / PERIOD_S))):
        # By the clock and not by the last reply, so that no period is longer than the others.
        leave_s = began_s + number * PERIOD_S + HALF_PERIOD_S
        loads.append(clients.ask_until(past(leave_s)))
        time.sleep(max(0.0, leave_s + HALF_PERIOD_S - time.monotonic()))
    title = f"Sawtooth: the same clients for {HALF_PERIOD_S:.0f} s of each {PERIOD_S:.0f} s"
    return Part("sawtooth", title, began_s, tuple(loads), time.monotonic())


def past(instant_s: float) -> Callable[[], bool]:
    """Whether it is."""
    return lambda: time.monotonic() >= instant_s


def wait_until(done: Callable[[], bool], longest_s: float) -> None:
    """Or for `longest_s`."""
    give_up_s = time.monotonic() + longest_s
    while not done() and time.monotonic() < give_up_s:
        time.sleep(LOOK_EVERY_S / 4)


def report(parts: Sequence[Part], observer: Observer, replies: Mapping[str, Sequence[Reply]]) -> None:
    """Prints the table, and what the sawtooth did."""
    everybody = [one for several in replies.values() for one in several]
    print(
        f"\n{'part':<10}{'deployment':<12}{'start':>6}{'most':>6}{'end':>5}{'changes':>9}{'up after s':>12}"
        f"{'back after s':>14}{'windows':>9}{'answered':>10}{'failed':>8}  by status"
    )
    for part in parts:
        looks, held = part.of(observer.looks), part.of(observer.held)
        for name in WATCHED:
            counts = [look.running[name] for look in looks] or [0]
            windows = [one.windows[name] for one in held if part.loaded(one.at_s)] if name in APPLIANCES else []
            sent = [one for one in replies.get(name, everybody) if part.began_s <= one.due_s < part.ended_s]
            failed = Counter(one.status for one in sent if not 200 <= one.status < 300)
            print(
                f"{part.name:<10}{name:<12}{counts[0]:>6}{max(counts):>6}{counts[-1]:>5}"
                f"{len(changes(looks, name)):>9}{shown(up_after_s(part, looks, name)):>12}"
                f"{shown(back_after_s(part, looks, name)):>14}{shown(mean(windows)):>9}"
                f"{len(sent) - failed.total():>10}{failed.total():>8}  {by_status(failed)}"
            )
    print("windows: that waited or ran while the clients were there, mean; the ingress's row has all requests")
    for part in parts:
        changed = changes(part.of(observer.looks), KETTLE)
        print(
            f"{part.name}: {len(part.loads)} loads in {part.minutes(part.ended_s):.1f} minutes, the number of {KETTLE} "
            f"replicas changed {len(changed)} times; {taken_back(changed, PERIOD_S)} changes were taken back within "
            f"{PERIOD_S:.0f} s (thrash)"
        )
    for what, times in observer.missed.items():
        print(f"{times} looks at {what} had no answer")


def changes(looks: Sequence[Look], name: str) -> list[tuple[float, int]]:
    """When the number of its replicas was seen to have changed, and by how many."""
    differences = [(later.at_s, later.running[name] - earlier.running[name]) for earlier, later in pairwise(looks)]
    return [(at_s, by) for at_s, by in differences if by]


def taken_back(changed: Sequence[tuple[float, int]], within_s: float) -> int:
    """How many changes were followed so soon by one the other way: thrash."""
    return sum(one * other < 0 and later_s - at_s <= within_s for (at_s, one), (later_s, other) in pairwise(changed))


def up_after_s(part: Part, looks: Sequence[Look], name: str) -> float:
    """From the first load until more replicas than at the start of the part were seen to run; NaN without."""
    first_s = part.loads[0][0]
    return next(
        (one.at_s - first_s for one in looks if one.at_s >= first_s and one.running[name] > looks[0].running[name]),
        math.nan,
    )


def back_after_s(part: Part, looks: Sequence[Look], name: str) -> float:
    """From the end of the last load until there were as few again; NaN when there were no more, or still are."""
    last_s = part.loads[-1][1]
    more = False
    for one in looks:
        if one.at_s >= last_s:
            if more and one.running[name] <= looks[0].running[name]:
                return one.at_s - last_s
            more = more or one.running[name] > looks[0].running[name]
    return math.nan


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return sum(values) / len(values) if values else math.nan


def shown(value: float) -> str:
    """A whole number, or that there is none."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def by_status(failed: Mapping[int, int]) -> str:
    """Status 0: the connection was lost under the request."""
    return ", ".join(f"{count} x {status or 'lost'}" for status, count in sorted(failed.items()))


def draw(path: Path, parts: Sequence[Part], observer: Observer, target_windows: float) -> None:
    """A panel for each part: replicas as steps, the load shaded, behind them the windows."""
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    panels = figure.subplots(len(parts), squeeze=False)[:, 0]
    for part, axes in zip(parts, panels, strict=True):
        artists = draw_part(axes, part, observer, target_windows)
    figure.legend(handles=artists, loc="outside lower center", ncols=4, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_part(axes: Axes, part: Part, observer: Observer, target_windows: float) -> list[Artist]:
    """What belongs into the legend."""
    looks, held = part.of(observer.looks), part.of(observer.held)
    # The twin has the background: what is drawn on `axes` must lie above all of it.
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    shades = [
        behind.axvspan(part.minutes(began_s), part.minutes(ended_s), color="0.9", linewidth=0, label="clients there")
        for began_s, ended_s in part.loads
    ]
    (windows,) = behind.plot(
        [part.minutes(one.at_s) for one in held],
        [one.windows[KETTLE] for one in held],
        color="0.55",
        linewidth=0.8,
        label=f"{KETTLE}: windows",
    )
    target = behind.axhline(
        target_windows,
        color="0.55",
        linewidth=0.8,
        linestyle="--",
        label=f"{target_windows:g} windows, for one replica",
    )
    at_min = [part.minutes(look.at_s) for look in looks]
    (wanted,) = axes.step(
        at_min,
        [look.wanted[KETTLE] for look in looks],
        where="post",
        color=COLOURS[KETTLE],
        linewidth=1.2,
        linestyle=":",
        label=f"{KETTLE}: wanted",
    )
    running = [
        axes.step(
            at_min,
            [look.running[name] + APART[name] for look in looks],
            where="post",
            color=COLOURS[name],
            linewidth=1.8,
            label=f"{name}: running",
        )[0]
        for name in reversed(WATCHED)  # the kettle last, above the others
    ]
    most = max((max(*look.running.values(), *look.wanted.values()) for look in looks), default=1)
    axes.set(
        title=part.title,
        xlabel="time (minutes)",
        ylabel="replicas",
        xlim=(0.0, part.minutes(part.ended_s)),
        ylim=(0.0, most + 0.5),
        yticks=range(most + 1),
    )
    behind.set(ylabel="windows that wait or run")
    behind.set_ylim(bottom=0.0)
    return [*reversed(running), wanted, windows, target, shades[0]]


if __name__ == "__main__":
    main()
