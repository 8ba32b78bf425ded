"""No credential reaches a log line, whatever carries it; lines stand in Serve's file as they are."""

from __future__ import annotations

import io
import json
import logging
import string
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.logs import JsonFormatter, ReplicaLog, redact

CREDENTIAL = st.text(string.ascii_letters + string.digits + "-_.~+/", min_size=8, max_size=60)
AROUND = st.text(" \t\n.,;:'\"{}[]()", max_size=8)
NAME = st.sampled_from(["token", "INFLUX_TOKEN", "secret", "password", "apikey", "api_key", "Authorization"])
SEGMENT = st.text(string.ascii_letters + string.digits + "-_", min_size=5, max_size=40)


def line(message: str, *arguments: object, **extra: object) -> str:
    record = logging.LogRecord("nilm", logging.INFO, __file__, 1, message, arguments, None)
    if extra:
        record.fields = extra
    return JsonFormatter().format(record)


@given(AROUND, st.sampled_from(["Bearer ", "bearer  ", "BEARER\t"]), CREDENTIAL, AROUND)
def test_a_bearer_credential_never_shows(before: str, scheme: str, credential: str, after: str) -> None:
    assert credential not in redact(f"{before}{scheme}{credential}{after}")


@given(
    st.sampled_from(
        ["Authorization: ", "authorization=", '"Authorization": "', "'authorization': '", "AUTHORIZATION : "]
    ),
    st.sampled_from(["Bearer ", "bearer ", "Basic ", "Token ", ""]),
    CREDENTIAL,
)
def test_an_authorization_header_never_shows(name: str, scheme: str, credential: str) -> None:
    assert credential not in redact(f"{name}{scheme}{credential}")


@given(AROUND, SEGMENT, SEGMENT, SEGMENT, AROUND)
def test_a_bare_jwt_never_shows(before: str, header: str, payload: str, signature: str, after: str) -> None:
    token = f"eyJ{header}.{payload}.{signature}"
    assert token not in redact(before + token + after)
    assert signature not in redact(before + token + after) or signature in before + after


@given(NAME, st.sampled_from(["=", ": ", ":", '": "', "' : '"]), CREDENTIAL)
def test_a_named_secret_never_shows(name: str, joint: str, credential: str) -> None:
    assert credential not in redact(f"{name}{joint}{credential}")


@given(CREDENTIAL)
def test_no_part_of_a_line_shows_a_credential(credential: str) -> None:
    assume(credential not in {"exception", "redacted"})
    header = f"Authorization: Bearer {credential}"

    class Thing:
        def __str__(self) -> str:
            return header

    lines = [
        line(header),
        line("value: %s", header),
        line("x", text=header, nested={"a": [header, (header,)]}, thing=Thing(), error=ValueError(header)),
    ]
    crash = ValueError(header)
    record = logging.LogRecord("nilm", logging.ERROR, __file__, 1, "crash", None, (ValueError, crash, None))
    lines.append(JsonFormatter().format(record))
    for text in lines:
        assert credential not in text
        assert isinstance(json.loads(text), dict)


@given(st.text(), st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_a_line_is_one_line_of_json(message: str, fields: dict[str, str]) -> None:
    text = line(message.replace("%", ""), **{f"f_{key}": value for key, value in fields.items()})
    assert "\n" not in text
    assert json.loads(text)["level"] == "info"


@pytest.mark.parametrize("text", ["kettle 1.0.0", "request_id=abc", "duration_ms: 12", "tokens verified", "a bearer"])
def test_plain_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.fixture
def serves_file(tmp_path: Path) -> Iterator[Path]:
    """Serve's logger as it is in a replica: a buffer in front of a rotating file."""
    path = tmp_path / "replica.log"
    file = RotatingFileHandler(path, maxBytes=2000, backupCount=2)
    buffer = MemoryHandler(10, target=file)
    serve = logging.getLogger("ray.serve")
    before, serve.handlers[:] = serve.handlers[:], [buffer]
    yield path
    serve.handlers[:] = before
    file.close()


def test_in_a_replica_lines_stand_in_serves_file_as_they_are(serves_file: Path) -> None:
    handler = ReplicaLog(io.StringIO())
    handler.setFormatter(JsonFormatter({"deployment": "ingress", "replica": "abc"}))
    for n in range(40):
        handler.handle(logging.LogRecord("nilm", logging.INFO, __file__, n, "request %d", (n,), None))
    assert handler.stream.getvalue() == ""
    files = sorted(serves_file.parent.iterdir())
    assert len(files) == 3
    assert all(file.stat().st_size <= 2000 for file in files)
    last = json.loads(serves_file.read_text().splitlines()[-1])
    assert (last["message"], last["deployment"], last["replica"]) == ("request 39", "ingress", "abc")


def test_outside_a_replica_they_go_to_the_stream() -> None:
    handler = ReplicaLog(io.StringIO())
    handler.setFormatter(JsonFormatter())
    handler.handle(logging.LogRecord("nilm", logging.INFO, __file__, 1, "request", None, None))
    assert json.loads(handler.stream.getvalue())["message"] == "request"
