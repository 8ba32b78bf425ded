"""A web server on localhost that serves one folder and can fail in the ways that servers do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """`faults` by path: a status, or a function that answers with the file's bytes in its own way."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults: dict[str, int | Callable[[_Handler, bytes], None]] = {}
        self.gets: Counter[str] = Counter()
        self.seen: list[tuple[str, str | None]] = []
        """Of each request: its query and its Authorization."""
        self.closing = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *_: object) -> None:
        """No access log among the test's output."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.server.gets[path] += 1
        self.server.seen.append((parts.query, self.headers["Authorization"]))
        file = self.server.root / path.lstrip("/")
        fault = self.server.faults.get(path)
        if isinstance(fault, int):
            self.answer(b"no", status=fault)
        elif not file.is_file():
            self.answer(b"not here", status=404)
        elif fault is None:
            self.answer(file.read_bytes())
        else:
            fault(self, file.read_bytes())

    def answer(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        """`length`: what is announced, when that is not the truth."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def cut_off(handler: _Handler, content: bytes) -> None:
    """The whole length is announced, half of it comes."""
    handler.answer(content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def cut_off_unannounced(handler: _Handler, content: bytes) -> None:
    """No length is announced, so that half a file looks like one."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def hang(handler: _Handler, content: bytes) -> None:
    """Half of it comes, then nothing, and the connection stays open."""
    handler.answer(content[: len(content) // 2], length=len(content))
    handler.server.closing.wait(60)
    handler.close_connection = True


def drip(handler: _Handler, content: bytes) -> None:
    """Every piece comes in time, the whole never does."""
    handler.answer(b"", length=len(content))
    for byte in content:
        if handler.server.closing.is_set():
            return
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def changed(handler: _Handler, content: bytes) -> None:
    """As long as the file, but one bit of it is another."""
    handler.answer(content[:-1] + bytes([content[-1] ^ 1]))


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """Serves until the end of the block."""
    server = FileServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
