"""Ports for servers that take theirs later than they are told it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serve_app.cli import ports
from serve_app.cli.ports import HIGHEST_PORT, LOWEST_PORT, free_port, reserve_block

OUTGOING = range(*(int(bound) for bound in ports.OUTGOING_PORTS.read_text(encoding="ascii").split()))


def test_a_preferred_port_is_taken_only_when_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        preferred = int(taken.getsockname()[1])
        assert free_port(preferred) != preferred
    assert free_port(preferred) == preferred


def test_no_outgoing_connection_can_be_given_a_chosen_port() -> None:
    chosen = {free_port() for _ in range(50)}
    assert len(chosen) > 40
    assert not chosen & set(OUTGOING)
    assert LOWEST_PORT <= min(chosen) <= max(chosen) <= HIGHEST_PORT


def test_the_kernel_chooses_when_all_of_them_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_is_free", lambda port: False)
    assert free_port() in OUTGOING


@pytest.mark.parametrize("text", ["", "few\tmany", "1024\t65535"])
def test_an_outgoing_range_that_says_nothing_useful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "range").write_text(text)
    monkeypatch.setattr(ports, "OUTGOING_PORTS", tmp_path / "range")
    assert LOWEST_PORT <= free_port() <= HIGHEST_PORT


def test_no_two_runs_get_the_same_block() -> None:
    reserved = [reserve_block() for _ in range(5)]
    try:
        taken = [port for _, block in reserved for port in block]
        assert len(taken) == len(set(taken))
        assert HIGHEST_PORT < min(taken) <= max(taken) < ports.DEFAULT_OUTGOING_PORT
    finally:
        for mark, _ in reserved:
            mark.close()


def test_the_last_block_is_somebodys_and_then_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DEFAULT_OUTGOING_PORT", HIGHEST_PORT + 2 * ports.BLOCK_PORTS)  # there is one
    mark, block = reserve_block()
    with pytest.raises(OSError, match="is in use"):
        reserve_block()
    mark.close()
    again, same = reserve_block()
    again.close()
    assert same == block
