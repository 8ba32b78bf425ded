"""The development file: read again when it changes, added to without losing anything, never half understood."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.access.development_grants import (
    GRANTS_FILE_NAME,
    MAX_FILE_BYTES,
    NOTE,
    DevelopmentGrants,
    grant_development_access,
)
from serve_app.access.grants import Grants, GrantSourceError
from serve_app.access.principal import Principal, Role

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / GRANTS_FILE_NAME


@pytest.fixture
def source(path: Path) -> DevelopmentGrants:
    return DevelopmentGrants(path)


def fetched(source: DevelopmentGrants, principal: Principal) -> Grants:
    return asyncio.run(source.fetch(principal))


def buildings(source: DevelopmentGrants, user_id: str = "alice") -> dict[str, frozenset[str]]:
    return dict((fetched(source, Principal(user_id))).buildings)


def test_without_a_file_or_a_user_nobody_has_a_building(source: DevelopmentGrants, tmp_path: Path) -> None:
    assert buildings(source) == {}
    grant_development_access(tmp_path, "bob", ["home"])
    assert buildings(source) == {}
    assert buildings(source, "bob") == {"home": frozenset({"*"})}


def test_the_role_is_the_tokens(source: DevelopmentGrants) -> None:
    assert fetched(source, Principal("alice", Role.SUPER_ADMIN)) == Grants(Role.SUPER_ADMIN, {})
    assert fetched(source, Principal("alice")) == Grants(Role.USER, {})
    asyncio.run(source.aclose())


def test_a_grant_counts_at_once_and_adds_to_what_was_there(source: DevelopmentGrants, tmp_path: Path) -> None:
    grant_development_access(tmp_path, "alice", ["home"], ["kettle"])
    assert buildings(source) == {"home": frozenset({"kettle"})}
    grant_development_access(tmp_path, "bob", ["*"])
    grant_development_access(tmp_path, "alice", ["home", "barn"], ["fridge"])
    assert buildings(source) == {"home": frozenset({"kettle", "fridge"}), "barn": frozenset({"fridge"})}
    assert buildings(source, "bob") == {"*": frozenset({"*"})}


def test_a_file_that_is_taken_away_takes_its_grants_along(source: DevelopmentGrants, tmp_path: Path) -> None:
    path = grant_development_access(tmp_path, "alice", ["home"])
    assert buildings(source)
    path.unlink()
    assert buildings(source) == {}


def test_a_change_of_the_same_length_and_time_by_renaming_is_seen(source: DevelopmentGrants, path: Path) -> None:
    path.write_text('{"users": {"alice": {"home": ["*"]}}}')
    assert buildings(source) == {"home": frozenset({"*"})}
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    other = path.with_name("other")
    other.write_text('{"users": {"alice": {"barn": ["*"]}}}')
    os.utime(other, ns=times)
    other.replace(path)
    assert buildings(source) == {"barn": frozenset({"*"})}


def test_an_unchanged_file_is_not_read_again(
    source: DevelopmentGrants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_development_access(tmp_path, "alice", ["home"])
    buildings(source)
    monkeypatch.setattr(json, "loads", None)
    assert buildings(source) == {"home": frozenset({"*"})}


def test_the_file_says_what_it_is_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = grant_development_access(tmp_path / "new" / "folder", "alice", ["home"])
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document == {"note": NOTE, "users": {"alice": {"home": ["*"]}}}
    assert "Development only" in NOTE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


BROKEN = {
    "not JSON": (b'{"users": {', "Expecting"),
    "empty": (b"", "Expecting"),
    "not UTF-8": (b'{"users": {"\xff": {}}}', "utf-8"),
    "a list": (b"[]", "must be an object"),
    "no users": (b'{"note": "x"}', "must be an object"),
    "an unknown key": (b'{"users": {}, "user": {}}', "must be an object"),
    "users of another kind": (b'{"users": []}', "users: not an object"),
    "a user of another kind": (b'{"users": {"alice": ["home"]}}', "'alice': not an object"),
    "appliances of another kind": (b'{"users": {"alice": {"home": "*"}}}', "'alice', 'home': not a list"),
    "an appliance of another kind": (b'{"users": {"alice": {"home": [1]}}}', "1 is not an id"),
    "a building that is no id": (b'{"users": {"alice": {"ho me": ["*"]}}}', "'ho me' is not an id"),
    "a user twice": (b'{"users": {"alice": {}, "alice": {"home": ["*"]}}}', "'alice' is there twice"),
    "nested deeply": (b"[" * 200_000, "nested too deeply"),
    "too long": (b" " * (MAX_FILE_BYTES + 1), "longer than"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_an_error_that_names_it_and_stays_as_it_is(
    source: DevelopmentGrants, path: Path, content: bytes, reason: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(GrantSourceError) as caught:
        fetched(source, Principal("nobody"))
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    with pytest.raises(GrantSourceError, match=GRANTS_FILE_NAME):
        grant_development_access(path.parent, "alice", ["home"])
    assert path.read_bytes() == content


def test_a_file_that_broke_is_an_error_although_it_was_whole_before_and_then_heals(
    source: DevelopmentGrants, path: Path
) -> None:
    grant_development_access(path.parent, "alice", ["home"])
    whole = path.read_bytes()
    assert buildings(source)
    path.write_bytes(whole[:-10])
    for _ in range(2):
        with pytest.raises(GrantSourceError):
            fetched(source, Principal("alice"))
    path.write_bytes(whole)
    assert buildings(source) == {"home": frozenset({"*"})}


def test_a_folder_in_the_files_place_is_an_error(source: DevelopmentGrants, path: Path) -> None:
    path.mkdir()
    with pytest.raises(GrantSourceError, match=GRANTS_FILE_NAME):
        fetched(source, Principal("alice"))


@pytest.mark.parametrize(
    ("user_id", "granted", "appliances", "reason"),
    [
        ("alice", ["ho me"], ["*"], "'ho me' is no building id"),
        ("alice", ["home", "barn\n"], ["*"], "is no building id"),
        ("alice", ["**"], ["*"], "is no building id"),
        ("alice", ["home"], [""], "'' is no appliance id"),
        ("alice", [], ["*"], "at least one building"),
        ("alice", ["home"], [], "at least one appliance"),
        ("alice", "home", ["*"], "in a list"),
        ("", ["home"], ["*"], "'' is no user id"),
        ("a\nb", ["home"], ["*"], "is no user id"),
    ],
)
def test_ids_that_cannot_be_are_refused_and_nothing_is_written(
    tmp_path: Path, user_id: str, granted: list[str], appliances: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        grant_development_access(tmp_path, user_id, granted, appliances)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_grant_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from serve_app.access.development_grants import grant_development_access\n"
        "sys.stdin.read()\n"
        "for i in range(40): grant_development_access(Path(sys.argv[1]), 'alice', [f'{sys.argv[2]}-{i}'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT, stdin=subprocess.PIPE) for name in ("a", "b", "c")]
    for writer in writers:  # all are up and wait for their input to end
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    document = json.loads((tmp_path / GRANTS_FILE_NAME).read_text(encoding="utf-8"))
    assert document["users"]["alice"].keys() == {f"{name}-{i}" for name in "abc" for i in range(40)}
