"""JSON log lines with secrets redacted. One line per request, written by the request middleware.

Ray Serve replaces the root handlers of a replica, so the service owns one named logger with one stream handler.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

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

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redact(record.getMessage()),
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


def service_logger() -> logging.Logger:
    """The service's logger, set up once per process."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
