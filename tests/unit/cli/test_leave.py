"""`nilm leave` as far as it goes without a cluster; `tests/fault/test_cluster.py` lets a node leave."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import typer
from typer.testing import CliRunner

from serve_app.cli import leave
from serve_app.cli.main import app
from serve_app.cli.ports import free_port


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no cluster"),
        (["--address", "127.0.0.1", "--within-s", "1"], "nothing answers at 127.0.0.1"),
        (["--address", f"127.0.0.1:{free_port()}", "--within-s", "1"], "nothing answers"),
        (["--within-s", "0"], "greater than or equal to 1"),
    ],
)
def test_without_a_cluster_it_says_so(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["leave", *options], env={"RAY_ADDRESS": "", "RAY_API_SERVER_ADDRESS": ""})
    assert result.exit_code != 0
    assert said in result.output


def test_a_head_that_starts_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    head = socket.socket()
    head.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def come_back() -> None:
        head.bind(("127.0.0.1", port))
        head.listen()

    monkeypatch.setattr("ray.util.state.list_nodes", lambda **_: ["a node"])
    threading.Timer(0.7, come_back).start()
    began = time.monotonic()
    try:
        nodes = leave._answer_of(lambda: leave._nodes(f"127.0.0.1:{port}"), began + 30)
    finally:
        head.close()
    assert nodes == ["a node"]
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("said", ["AuthenticationError: another token", "Ray version mismatch: cluster has 2.61.0"])
def test_what_waiting_does_not_mend_ends_at_once(said: str) -> None:
    def ask() -> None:
        raise leave._Silent(said)

    began = time.monotonic()
    with pytest.raises(typer.Exit):
        leave._answer_of(ask, began + 60)
    assert time.monotonic() - began < 30
