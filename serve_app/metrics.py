"""What one ingress replica counts, with closed label sets: a client must not be able to make a series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from deployments.telemetry import Labels, Telemetry
from serve_app.access.quotas import BATCH_QUOTA, IP_QUOTA, USER_QUOTA, Verdict

if TYPE_CHECKING:
    from serve_app.services import Services

BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
AVAILABILITY_TARGET = 0.999
"""Of the requests that were ours to answer: everything but 5xx."""
LATENCY_TARGET_S = 0.5
"""Of `/infer`; a bound of the histogram, or nobody could count what was faster."""
LATENCY_TARGET = 0.99
"""Of the `/infer` that are answered with 2xx, within LATENCY_TARGET_S."""


class HttpMetrics:
    """Requests by route template and status class; the path itself is never a label."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._requests = telemetry.counter("nilm_http_requests", "Requests answered", "route", "status_class")
        self._seconds = telemetry.histogram(
            "nilm_http_request_seconds", "Time to answer", BOUNDS_S, "route", "status_class"
        )
        self._routes: set[str] = set()
        for route in ("/infer", "refused"):
            self._expect(route)
        self._stages = telemetry.histogram(
            "nilm_stage_seconds", "Time of the stages of a request: auth, queue, infer, persist", BOUNDS_S, "stage"
        )
        self._replays = telemetry.counter(
            "nilm_idempotency_replays", "Replies that an earlier request had before", known=[()]
        )
        quotas = [(USER_QUOTA,), (BATCH_QUOTA,), (IP_QUOTA,)]
        self._quota_refusals = telemetry.counter(
            "nilm_quota_refusals", "Requests refused with 429", "quota", known=quotas
        )

    def answered(
        self,
        route: str,
        status: int,
        seconds: float,
        stages_ms: Mapping[str, float] | None = None,
        verdicts: Iterable[Verdict] = (),
    ) -> None:
        """One answered request. `stages_ms`: milliseconds by stage; `verdicts`: of the quotas it counts against."""
        status_class = f"{status // 100}xx"
        if route not in self._routes:
            self._expect(route)
        self._requests.add(route, status_class)
        self._seconds.observe(seconds, route, status_class)
        for stage, milliseconds in (stages_ms or {}).items():
            self._stages.observe(milliseconds / 1000, stage)
        for verdict in verdicts:
            if not verdict.allowed:
                self._quota_refusals.add(verdict.quota)

    def _expect(self, route: str) -> None:
        """Told as 0 before the first: to a rate, a series that begins at 1 has never grown."""
        self._routes.add(route)
        for status_class in ("2xx", "4xx", "5xx"):
            self._requests.add(route, status_class, by=0)

    def replayed(self) -> None:
        """One reply was that of an earlier request with the same key."""
        self._replays.add()


def watch(telemetry: Telemetry, services: Services, in_flight: Callable[[], int]) -> None:
    """Adds what the parts of an ingress know of themselves. `in_flight`: requests that are being answered."""
    catalogue = services.catalogue

    def appliances() -> dict[Labels, float]:
        known = {name: catalogue.appliance(name) for name in catalogue.appliance_ids}
        return {(name,): float(status is not None and status.ready) for name, status in known.items()}

    def ready() -> dict[Labels, float]:
        store = catalogue.store()
        return {
            ("tokens",): float(services.verifier.usable),
            ("models",): min(appliances().values(), default=0.0),
            ("store",): float(store is not None and store.reachable),
        }

    def waiting() -> dict[Labels, float]:
        return {(name,): float(model.waiting) for name, model in services.predictor.appliances.items()}

    def lookups() -> dict[Labels, float]:
        stats = services.grants.stats()
        return {("hit",): stats.hits, ("miss",): stats.misses}

    def fetches() -> dict[Labels, float]:
        stats = services.grants.stats()
        return {("ok",): stats.fetches - stats.failures, ("failed",): stats.failures}

    telemetry.gauge("nilm_ready", "1 while this part can be used, as far as this ingress knows", ready, "part")
    telemetry.gauge("nilm_appliance_ready", "1 while the appliance has a warm model", appliances, "appliance")
    telemetry.gauge("nilm_windows_waiting", "Windows that wait at this ingress for a model", waiting, "appliance")
    telemetry.gauge("nilm_requests_in_flight", "Requests being answered", lambda: {(): in_flight()})
    telemetry.totals("nilm_grants_lookups", "Questions what a caller may use", lookups, "result")
    telemetry.totals("nilm_grants_fetches", "Questions to the source of grants", fetches, "outcome")
    telemetry.totals(
        "nilm_key_refreshes", "Fetches of the identity provider's keys", services.verifier.refreshes, "outcome"
    )
    telemetry.gauge(
        "nilm_slo_availability_target_ratio",
        "Of the requests, not answered with 5xx",
        lambda: {(): AVAILABILITY_TARGET},
    )
    telemetry.gauge("nilm_slo_latency_target_ratio", "Of the /infer", lambda: {(): LATENCY_TARGET})
    telemetry.gauge(
        "nilm_slo_latency_target_seconds", "Within which /infer is answered", lambda: {(): LATENCY_TARGET_S}
    )
