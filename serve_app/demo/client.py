"""Talks to a running service: asks what it wants, sends one window, waits when told to.

Owns the retries. A 429 or 503 holds back every window in flight until the service's Retry-After has passed,
a broken connection is tried again for a while, anything else is not asked twice. Sending a window again is
safe: a point is identified by building and timestamp, so a repeat overwrites itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpx
import numpy as np

from serve_app.demo.errors import Refused, ServiceError, UnexpectedReply, Unreachable, WindowFailed
from serve_app.demo.recording import WindowRequest
from serve_app.demo.replies import Disaggregation, ModelEntry, ModelsReply, WindowEntry, parse_reply

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_DEFAULT_WAIT_S = 1.0
_LONGEST_WAIT_S = 120.0  # two windows of a per-minute quota: longer than that is not a pause but a refusal
_ATTEMPTS = 8
_RECONNECTS = 4  # 0.5 + 1 + 2 s: a restart of the proxy, not of a machine

OnWait = Callable[[float, str], None]


@dataclass(frozen=True)
class Contract:
    """The window of the service: `window_size` samples of `sample_period_s`, answered for `output_index`."""

    window_size: int
    sample_period_s: int
    output_index: int
    appliances: tuple[str, ...]


class ServiceClient:
    """One service, one token.

        async with ServiceClient("http://127.0.0.1:8000", token) as client:
            contract = await client.contract()
            reply = await client.disaggregate("demo-home", window)

    `on_wait(seconds, reason)` is called whenever the service asked for a pause.
    """

    def __init__(self, url: str, token: str, on_wait: OnWait | None = None) -> None:
        self._url = url.rstrip("/")
        self._on_wait = on_wait or (lambda _seconds, _reason: None)
        self._resume_at = 0.0  # monotonic seconds before which nothing is sent
        try:
            parsed = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{url!r} is not a URL.") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ServiceError(f"{url!r} is not an http:// or https:// URL.")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}", "User-Agent": "nilm-demo"},
            timeout=_TIMEOUT,
            trust_env=not is_loopback(parsed.host),  # a proxy for the internet does not lead back here
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    def set_on_wait(self, on_wait: OnWait) -> None:
        """Report pauses to `on_wait` from now on."""
        self._on_wait = on_wait

    async def contract(self) -> Contract:
        """What `GET /models` says about the windows of `/disaggregate`.

        Raises:
            ServiceError: unreachable, refused, or no appliance is served.
        """
        reply = parse_reply(await self._send("GET", "/models"), ModelsReply)
        serving = [entry for entry in reply.models if entry.serving]
        appliances = tuple(dict.fromkeys(entry.appliance_id for entry in serving))
        if not appliances:
            raise Unreachable(f"The service at {self._url} has no model ready: wait for /ready, or look at /models.")
        entry = reply.disaggregate or _agreed(serving)
        index = entry.output_sample_index if entry.output_sample_index is not None else entry.input_window_size - 1
        if entry.input_window_size < 1 or entry.sample_period_s < 1 or not 0 <= index < entry.input_window_size:
            raise UnexpectedReply("GET /models describes a window that cannot be cut.")
        return Contract(entry.input_window_size, entry.sample_period_s, index, appliances)

    async def disaggregate(self, building_id: str, window: WindowRequest) -> Disaggregation:
        """Send one window and return the stored reply.

        Raises:
            WindowFailed: this window was not acknowledged; another may be.
            ServiceError: no window would be.
        """
        body = {
            "building_id": building_id,
            "window": np.round(window.window_kw, 6).tolist(),  # to the milliwatt
            "timestamp": window.last_sample_at.isoformat(),
        }
        reply = parse_reply(await self._send("POST", "/disaggregate", body), Disaggregation)
        if not reply.persisted:
            raise WindowFailed("the service answered without storing the prediction")
        return reply

    async def _send(self, method: str, path: str, body: object = None) -> httpx.Response:
        reconnects = 0
        reason = ""
        for _ in range(_ATTEMPTS):
            await self._pause()
            try:
                response = await self._http.request(method, self._url + path, json=body)
            except httpx.TransportError as error:
                reconnects += 1
                if method == "GET" or reconnects >= _RECONNECTS:
                    raise Unreachable(_unreachable(self._url, error)) from error
                await asyncio.sleep(0.5 * 2 ** (reconnects - 1))
                continue
            if response.status_code not in {429, 503} and not _retryable(response):
                return self._accepted(response, path)
            reason = f"{response.status_code}, {_detail(response)}"
            self._hold_back(_retry_after_s(response), reason)
        if method == "GET":
            raise Unreachable(f"The service at {self._url} is not ready ({reason}).")
        raise WindowFailed(f"no answer after {_ATTEMPTS} attempts ({reason})")

    async def _pause(self) -> None:
        while self._resume_at > time.monotonic():  # noqa: ASYNC110 - the wait may grow meanwhile
            await asyncio.sleep(self._resume_at - time.monotonic())

    def _hold_back(self, seconds: float, reason: str) -> None:
        resume_at = time.monotonic() + seconds
        if resume_at > self._resume_at + 0.5:  # the other windows in flight heard the same
            self._on_wait(seconds, reason)
        self._resume_at = max(self._resume_at, resume_at)

    def _accepted(self, response: httpx.Response, path: str) -> httpx.Response:
        status, detail = response.status_code, _detail(response)
        if response.is_success:
            return response
        if status == 401:
            raise Refused(f"The service does not accept the token ({detail}): pass another with --token or NILM_TOKEN.")
        if status == 403:
            raise Refused(f"The token does not allow this ({detail}): choose a building it covers with --building.")
        if status == 404:
            raise Refused(f"The service at {self._url} has no {path} ({detail}).")
        if status == 422:
            raise Refused(f"The service refuses the window ({detail}).")
        if status < 500:
            raise Refused(f"The service refuses the request with {status} ({detail}).")
        raise WindowFailed(f"{status}, {detail}")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by name or address."""
    return host in {"localhost", "::1", "[::1]"} or host.startswith("127.")


def _agreed(models: list[ModelEntry]) -> WindowEntry:
    """The one window that all models share, for a service that does not name it."""
    windows = {(entry.input_window_size, entry.sample_period_s, entry.output_sample_index) for entry in models}
    size, period_s, index = next(iter(windows))
    if len(windows) > 1 or size is None or period_s is None:
        raise UnexpectedReply("GET /models does not say which window /disaggregate takes.")
    return WindowEntry(input_window_size=size, sample_period_s=period_s, output_sample_index=index)


def _retry_after_s(response: httpx.Response) -> float:
    """Retry-After in seconds, from either of its two forms, within 0.1 s and two minutes."""
    value = response.headers.get("Retry-After", "").strip()
    seconds = _DEFAULT_WAIT_S
    if value.isascii() and value.isdigit():
        seconds = float(value)
    elif value:
        try:
            seconds = (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except ValueError:
            seconds = _DEFAULT_WAIT_S
    return min(max(seconds, 0.1), _LONGEST_WAIT_S)


def _retryable(response: httpx.Response) -> bool:
    """Whether a server error says of itself that trying again may help."""
    return response.is_server_error and _problem(response).get("retryable") is True


def _problem(response: httpx.Response) -> dict[str, object]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _detail(response: httpx.Response) -> str:
    """The problem document in a few words."""
    problem = _problem(response)
    text = str(problem.get("detail") or problem.get("title") or response.reason_phrase or "no detail")
    errors = problem.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict) and errors[0].get("detail"):
        text += f" {errors[0].get('pointer', '')} {errors[0]['detail']}"
    return " ".join(text.split())[:300].rstrip(".")


def _unreachable(url: str, error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"The service at {url} does not answer in time."
    if not isinstance(error, httpx.ConnectError):
        return f"The service at {url} breaks off the connection ({type(error).__name__})."
    return f"No service answers at {url}: start it with `nilm run`, or name it with --url."
