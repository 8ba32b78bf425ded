"""JSON log lines with secrets redacted. One line per request, written by the request middleware.

They go into Serve's file of the replica as they are. By way of standard error Serve would wrap each into a line of its
own, after a look at the whole call stack: a quarter of an ingress's time.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from logging.handlers import MemoryHandler, RotatingFileHandler
from typing import TextIO

LOGGER_NAME = "nilm"
_SECRETS = re.compile(
    r"""(?ix)
    (?:bearer\s+[^\s"',]+)                                        # an Authorization header
    | (?:eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*)    # a bare JWT
    | (?:(?:token|secret|password|apikey|api_key|authorization)["']?\s*[:=]\s*["']?   # a named secret
         (?:(?:bearer|basic|token)\s+)?[^\s"',&}]+)                                   # with its scheme
    """
)


def redact(text: str) -> str:
    """Text without anything that looks like a credential."""
    return _SECRETS.sub("[redacted]", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; fields passed as `extra={"fields": {...}}` become keys."""

    def __init__(self, always: Mapping[str, str] | None = None) -> None:
        """`always`: fields of every line."""
        super().__init__()
        self._always = dict(always or {})

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redact(record.getMessage()),
            **self._always,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {key: _redacted(value) for key, value in fields.items()}
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


def _redacted(value: object) -> object:
    """`value` with every text inside redacted; what JSON cannot hold becomes text first, or it would slip through."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return redact(str(value))


class ReplicaLog(logging.StreamHandler[TextIO]):
    """Writes into the file that Serve keeps for this replica, rotation included; outside one, to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line. Never raises."""
        file = _replica_file()
        if file is None:
            super().emit(record)
            return
        try:
            line = self.format(record) + "\n"
            with file.lock or nullcontext():  # Serve writes from other threads
                if file.maxBytes and file.stream and file.stream.tell() + len(line) >= file.maxBytes:
                    file.doRollover()
                assert file.stream is not None  # noqa: S101 - Serve opens it when it makes the handler
                file.stream.write(line)
                file.stream.flush()
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)


def service_logger(always: Mapping[str, str] | None = None) -> logging.Logger:
    """The service's logger, set up once per process."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        handler = ReplicaLog(sys.stderr)
        handler.setFormatter(JsonFormatter(always))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def _replica_file() -> RotatingFileHandler | None:
    """Where Serve's own logger writes, if it has a file. Asked each time: a changed `logging_config` makes another."""
    for handler in logging.getLogger("ray.serve").handlers:
        target = handler.target if isinstance(handler, MemoryHandler) else handler
        if isinstance(target, RotatingFileHandler):
            return target
    return None
