"""Keep-alive HTTP/1.1 connections of the open-loop generator: a send takes an idle one, a thread reads replies."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

POLL_S = 0.05
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """Instants by `time.monotonic()`; status 0 when the connection was lost."""

    due_s: float
    answered_s: float
    status: int


class Connection:
    """One socket and the request that it carries, if any: the instant that was due."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self.due_s: float | None = None
        self._received = bytearray()
        self.socket = self._connected()

    def _connected(self) -> socket.socket:
        one = socket.create_connection(self._address, timeout=5)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return one

    def reconnect(self) -> None:
        """A fresh socket; what the old one carried is lost."""
        self.socket.close()
        self._received.clear()
        self.due_s = None
        self.socket = self._connected()

    def received(self, data: bytes) -> int | None:
        """The status, once the reply is whole."""
        self._received += data
        status = complete_reply(self._received)
        if status is not None:
            self._received.clear()
        return status


def complete_reply(received: bytes | bytearray) -> int | None:
    """The status of an HTTP reply that is here to its end; None while more must come."""
    head_end = received.find(HEAD_END)
    if head_end < 0:
        return None
    head = bytes(received[:head_end]).lower()
    body_bytes = len(received) - head_end - len(HEAD_END)
    status = int(head.split(b" ", 2)[1])
    length_at = head.find(b"\r\ncontent-length:")
    if length_at >= 0:
        length = int(head[length_at:].split(b":", 1)[1].split(b"\r\n", 1)[0])
        return status if body_bytes >= length else None
    chunked_end = received.endswith(LAST_CHUNK) or (body_bytes == 5 and received.endswith(b"0\r\n\r\n"))
    return status if chunked_end else None


class Connections:
    """A pool. `send` is for one thread; `replies` is complete after `wait`."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self.replies: list[Reply] = []
        self._by_descriptor: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._lock = threading.Lock()
        self._sent = 0
        self._closing = False
        self._poll = select.epoll()
        for _ in range(count):
            connection = Connection(host, port)
            self._watch(connection)
            self._idle.append(connection)
        self._reader = threading.Thread(target=self._read, name="replies", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._reader.join()
        for one in self._by_descriptor.values():
            one.socket.close()
        self._poll.close()

    def send(self, request: bytes, due_s: float) -> None:
        """On the connection that has been idle for longest; with none idle, on the next that is."""
        with self._lock:
            self._sent += 1
            self._waiting.append((request, due_s))
            if self._idle:
                self._use(self._idle.popleft())

    def wait(self, patience_s: float) -> int:
        """Until everything is answered, or for `patience_s`; returns how many requests have no answer."""
        give_up_s = time.monotonic() + patience_s
        while len(self.replies) < self._sent and time.monotonic() < give_up_s:
            time.sleep(POLL_S)
        return self._sent - len(self.replies)

    def _read(self) -> None:
        while not self._closing:
            for descriptor, _ in self._poll.poll(POLL_S):
                if descriptor in self._by_descriptor:
                    self._readable(self._by_descriptor[descriptor])

    def _readable(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        status = connection.received(data)
        if status is not None:
            self._answered(connection, status)

    def _answered(self, connection: Connection, status: int) -> None:
        answered_s = time.monotonic()
        with self._lock:
            if connection.due_s is not None:
                self.replies.append(Reply(connection.due_s, answered_s, status))
            self._use(connection)

    def _lost(self, connection: Connection) -> None:
        """The server closed it: a failure if it carried a request, and a fresh one in its place."""
        with self._lock:
            self._poll.unregister(connection.socket)
            del self._by_descriptor[connection.socket.fileno()]
            if connection.due_s is not None:
                self.replies.append(Reply(connection.due_s, time.monotonic(), 0))
            elif connection in self._idle:
                self._idle.remove(connection)
            try:
                connection.reconnect()
            except OSError:
                return  # nobody listens any more: what waits stays unanswered, and is counted so
            self._watch(connection)
            self._use(connection)

    def _watch(self, connection: Connection) -> None:
        self._by_descriptor[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)

    def _use(self, connection: Connection) -> None:
        """For what has waited for longest, or else it is idle. Holding the lock."""
        if not self._waiting:
            connection.due_s = None
            self._idle.append(connection)
            return
        request, connection.due_s = self._waiting.popleft()
        # A server that is gone shows when reading, and is counted there.
        with contextlib.suppress(OSError):
            connection.socket.sendall(request)
