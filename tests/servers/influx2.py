"""InfluxDB 2, as far as we use it, as a process of its own, for tests that break it.

    python -m tests.servers.influx2 --log FILE     # prints {"port": ...}, serves 127.0.0.1 or --host

It answers 204 only after the points are in the log and the log is on the disk, so that killing it loses nothing
acknowledged; started again with the same log it has them all. Queries are interpreted (`flux.py`). `POST /__control`
sets a `Fault`, `GET /__rows` reads back every point, `GET /__requests` tells what arrived. Token `test-token`, org
`test-org`, buckets `predictions` and `raw`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.flux import FluxError, Query, Series, annotated_csv, parameters_of
from tests.servers.line_protocol import LineProtocolError, Point, Value, parse

TOKEN = "test-token"
ORG = "test-org"
BUCKETS = ("predictions", "raw")
PRECISIONS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

KNOWN_NAMES = frozenset(
    {
        "idempotent_reply",
        "prediction",
        "rollout",
        "sensor_reading",
        "aggregate_kw",
        "confidence",
        "appliance_id",
        "attribution",
        "building_id",
        "document",
        "kind",
        "model_version",
        "predicted_kw",
        "request_id",
        "_start",
        "_time",
    }
)
"""The string literals a query may hold; anything else was written into it and should have been bound."""

Identity = tuple[str, str, tuple[tuple[str, str], ...], int]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` writes and queries (-1: with all until told otherwise)."""

    kind: str = "none"
    """none, status, reset_before, reset_after, partial, redirect."""
    status: int = 503
    retry_after_s: int | None = None
    times: int = -1
    latency_s: float = 0.0
    largest_body: int = 10**9
    """Longer bodies are 413."""
    refused_text: str = ""
    """A body that holds this is refused with 400, as a line the server does not like."""
    location: str = ""


class Storage:
    """Points by identity, and the log that outlives the process."""

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        self._points: dict[Identity, dict[str, Value]] = {}
        self._types: dict[tuple[str, str, str], type] = {}
        self._tagged: dict[tuple[str, str], set[Identity]] = {}
        if log.exists():
            for line in log.read_text(encoding="utf-8").splitlines():
                self._replay(line)
        self._log = log.open("a", encoding="utf-8")

    def _replay(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return  # the kill tore the last line: it was not acknowledged
        for point in entry["points"]:
            self._keep(entry["bucket"], Point(**point))

    def write(self, bucket: str, points: list[Point]) -> str | None:
        """Store on disk and in memory; or say which field has another type than before, and store nothing."""
        with self._lock:
            for point in points:
                for name, value in point.fields.items():
                    known = self._types.setdefault((bucket, point.measurement, name), type(value))
                    if known is not type(value):
                        return (
                            f'input field "{name}" is type {type(value).__name__}, already exists as {known.__name__}'
                        )
            self._log.write(json.dumps({"bucket": bucket, "points": [vars(point) for point in points]}) + "\n")
            self._log.flush()
            os.fsync(self._log.fileno())
            for point in points:
                self._keep(bucket, point)
        return None

    def _keep(self, bucket: str, point: Point) -> None:
        identity = (bucket, point.measurement, tuple(sorted(point.tags.items())), point.time_ns)
        self._points.setdefault(identity, {}).update(point.fields)
        for tag in identity[2]:
            self._tagged.setdefault(tag, set()).add(identity)

    def clear(self) -> None:
        with self._lock:
            self._log.truncate(0)
            self._points.clear()
            self._tagged.clear()
            self._types.clear()

    def delete(self, bucket: str, measurement: str, first_ns: int, last_ns: int) -> None:
        """Forget points of a time range; a restart would bring them back, which no test of ours minds."""
        with self._lock:
            for identity in list(self._points):
                if identity[:2] == (bucket, measurement) and first_ns <= identity[3] <= last_ns:
                    del self._points[identity]
                    for tag in identity[2]:
                        self._tagged[tag].discard(identity)

    def series(self, tags_wanted: Mapping[str, str]) -> list[Series]:
        """Every field of every series with these tags; by an index, as one key among thousands is found in InfluxDB."""
        found: dict[tuple[Any, ...], Series] = {}
        with self._lock:
            chosen = [self._tagged.get(tag, set()) for tag in tags_wanted.items()]
            for identity in set.intersection(*chosen) if chosen else self._points:
                bucket, measurement, tags, time_ns = identity
                fields = self._points[identity]
                for name, value in fields.items():
                    fresh = Series(bucket, measurement, dict(tags), name, [])
                    found.setdefault((bucket, measurement, tags, name), fresh).points.append((time_ns, value))
        return list(found.values())

    def rows(self) -> list[dict[str, Any]]:
        """Every point, fields merged as InfluxDB merges them."""
        with self._lock:
            return [
                {"bucket": bucket, "measurement": measurement, "tags": dict(tags), "time_ns": time_ns, "fields": fields}
                for (bucket, measurement, tags, time_ns), fields in self._points.items()
            ]


class Server(ThreadingHTTPServer):
    """Storage, the fault in force, and what arrived."""

    daemon_threads = True

    def __init__(self, log: Path, host: str, port: int) -> None:
        super().__init__((host, port), Handler)
        self.storage = Storage(log)
        self.requests: list[dict[str, Any]] = []
        self._fault = Fault()
        self._lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left before its answer is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def set_fault(self, fault: Fault) -> None:
        with self._lock:
            self._fault = fault

    def reset(self) -> None:
        """Forget everything, on the disk too: a fresh server without the cost of starting one."""
        self.set_fault(Fault())
        self.requests.clear()
        self.storage.clear()

    def take_fault(self) -> Fault:
        """The fault for this write, counted down."""
        with self._lock:
            fault = self._fault
            if fault.times > 0:
                self._fault = Fault(**{**vars(fault), "times": fault.times - 1})
            return Fault() if fault.times == 0 else fault


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Tests read answers, not logs."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path:
            case "/ping":
                self._reply(204)
            case "/health":
                self._reply(200, {"name": "influxdb", "status": "pass", "version": "v2.7.0"})
            case "/api/v2/buckets":
                self._buckets(parse_qs(url.query))
            case "/__rows":
                self._reply(200, self.server.storage.rows())
            case "/__requests":
                self._reply(200, self.server.requests)
            case _:
                self._error(404, "not found", "path not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        url = urlsplit(self.path)
        match url.path:
            case "/api/v2/write":
                self._write(parse_qs(url.query), body)
            case "/api/v2/query":
                self._query(parse_qs(url.query), json.loads(body))
            case "/api/v2/delete":
                self._delete(parse_qs(url.query), json.loads(body))
            case "/__reset":
                self.server.reset()
                self._reply(204)
            case "/__control":
                self.server.set_fault(Fault(**json.loads(body)))
                self._reply(204)
            case _:
                self._error(404, "not found", "path not found")

    def _buckets(self, query: dict[str, list[str]]) -> None:
        if not self._authorised():
            return
        name = query.get("name", [""])[0]
        if name and name not in BUCKETS:
            self._error(404, "not found", f'bucket "{name}" not found')
            return
        found = [name] if name else list(BUCKETS)
        self._reply(200, {"buckets": [{"id": f"{i:016x}", "name": n, "orgID": "0" * 16} for i, n in enumerate(found)]})

    def _authorised(self) -> bool:
        if self.headers.get("Authorization") == f"Token {TOKEN}":
            return True
        self._error(401, "unauthorized", "unauthorized access")
        return False

    def _write(self, query: dict[str, list[str]], body: bytes) -> None:
        fault = self.server.take_fault()
        if self._failing(fault, query, body):
            return
        if self._authorised() and self._addressed(query):
            if len(body) > fault.largest_body:
                self._error(413, "request too large", "unable to read data: points batch is too large")
            else:
                self._store(query, body, fault)

    def _query(self, query: dict[str, list[str]], document: dict[str, Any]) -> None:
        if self._failing(self.server.take_fault(), query, document["query"], document=document):
            return
        if not self._authorised():
            return
        if query.get("org", [""])[0] != ORG:
            self._error(404, "not found", "organization name not found")
            return
        try:
            parameters = parameters_of(document.get("extern"))
            text = document["query"]
            # Our texts join these with "and", never with "or"; the filter itself looks again.
            indexed = {n: v for n, v in parameters.items() if isinstance(v, str) and f"r.{n} == {n}" in text}
            tables = Query(self.server.storage.series(indexed), parameters).run(text, KNOWN_NAMES)
        except FluxError as error:
            self._error(400, "invalid", str(error))
            return
        self._reply(200, annotated_csv(tables), content_type="text/csv; charset=utf-8")

    def _delete(self, query: dict[str, list[str]], document: dict[str, str]) -> None:
        if self._failing(self.server.take_fault(), query, json.dumps(document)):
            return
        if not self._authorised() or not self._addressed(query):
            return
        predicate = re.fullmatch(r'_measurement="(\w+)"', document["predicate"])
        if predicate is None:
            self._error(400, "invalid", "the predicate is not one this server knows")
            return
        first, last = (_instant_ns(document[name]) for name in ("start", "stop"))
        self.server.storage.delete(query["bucket"][0], predicate[1], first, last)
        self._reply(204)

    def _failing(self, fault: Fault, query: dict[str, list[str]], body: str | bytes, **also: Any) -> bool:
        """Plays the fault that befalls the whole request; True when that was the answer."""
        self.server.requests.append({"bytes": len(body), "time_s": time.time(), "query": query, **also})
        time.sleep(fault.latency_s)
        if fault.kind == "reset_before":
            self._reset()
        elif fault.kind == "status":
            self._error(fault.status, "unavailable", "out of order", fault.retry_after_s)
        elif fault.kind == "redirect":
            self._reply(307, headers={"Location": fault.location})
        else:
            return False
        return True

    def _addressed(self, query: dict[str, list[str]]) -> bool:
        bucket, org = query.get("bucket", [""])[0], query.get("org", [""])[0]
        if org != ORG:
            self._error(404, "not found", "organization name not found")
        elif bucket not in BUCKETS:
            self._error(404, "not found", f'bucket "{bucket}" not found')
        elif query.get("precision", ["ns"])[0] not in PRECISIONS_NS:
            self._error(400, "invalid", "invalid precision; valid precision units are ns, us, ms, and s")
        else:
            return True
        return False

    def _store(self, query: dict[str, list[str]], body: bytes, fault: Fault) -> None:
        scale = PRECISIONS_NS[query.get("precision", ["ns"])[0]]
        try:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            text = body.decode()
            if fault.refused_text and fault.refused_text in text:
                raise LineProtocolError(f"unable to parse: {fault.refused_text}")  # noqa: TRY301
            points = [Point(p.measurement, p.tags, p.fields, p.time_ns * scale) for p in parse(text)]
        except (LineProtocolError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            self._error(400, "invalid", str(error))
            return
        if not points:
            self._error(400, "invalid", "writing requires points")
            return
        kept = points[: len(points) // 2] if fault.kind == "partial" else points
        conflict = self.server.storage.write(query["bucket"][0], kept)
        if fault.kind == "reset_after":
            self._reset()
        elif conflict is not None or len(kept) < len(points):
            message = f"failure writing points to database: partial write: {conflict} dropped={len(points) - len(kept)}"
            self._error(422, "unprocessable entity", message)
        else:
            self._reply(204)

    def _reset(self) -> None:
        """Close with RST: SO_LINGER of zero."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _error(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self._reply(status, {"code": code, "message": message}, headers)

    def _reply(
        self,
        status: int,
        document: object = None,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json; charset=utf-8",
    ) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        body = b"" if document is None else text.encode()
        self.send_response(status)
        self.send_header("X-Influxdb-Version", "v2.7.0")
        if body:
            self.send_header("Content-Type", content_type)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _instant_ns(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * 10**9


def main() -> None:
    """Serve until killed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--log", type=Path, required=True)
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=0)
    chosen = arguments.parse_args()
    server = Server(chosen.log, chosen.host, chosen.port)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
