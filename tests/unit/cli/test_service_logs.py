"""Repeating log files on standard output: whole lines, once, across rotation."""

from __future__ import annotations

import io
from pathlib import Path

from serve_app.cli.service_logs import LogFollower


def polled(follower: LogFollower) -> str:
    output = io.StringIO()
    follower.poll(output)
    return output.getvalue()


def test_only_whole_new_lines_are_repeated(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path)
    log = tmp_path / "replica.log"
    assert polled(follower) == ""
    log.write_text("one\ntw")
    assert polled(follower) == "one\n"
    log.write_text("one\ntwo\n")
    assert polled(follower) == "two\n"
    assert polled(follower) == ""


def test_a_rotated_file_is_read_from_its_start(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path)
    log = tmp_path / "replica.log"
    log.write_text("before rotation\n")
    polled(follower)
    log.write_text("after\n")
    assert polled(follower) == "after\n"
