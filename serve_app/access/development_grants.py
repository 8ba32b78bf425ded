"""Grants of a developer's machine: one small JSON file instead of Supabase's tables.

    {"note": "...", "users": {"<user id>": {"<building id>": ["<appliance id>"], "*": ["*"]}}}

Owns that file. Takes a missing file or user for "no buildings", but never a broken file: that is an error, so that a
slip of the pen is seen. For development only; production reads Supabase.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.access.development import write_private_file
from serve_app.access.grants import ALL, Grants, GrantSourceError, is_requestable_id
from serve_app.access.principal import Principal, Role

GRANTS_FILE_NAME = "development-grants.json"
MAX_FILE_BYTES = 1024 * 1024
NOTE = (
    "Development only: which buildings and appliances the users of this machine may use. "
    '"*" means every one. Production ignores this file and reads Supabase.'
)

_Users = Mapping[str, Mapping[str, frozenset[str]]]
_Version = tuple[int, int, int]


class DevelopmentGrants:
    """A GrantSource on the file; a change counts from the next fetch on, so use it with a cache of `ttl_s=0`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[_Version, _Users] | None = None

    async def fetch(self, principal: Principal) -> Grants:
        """What the file says now. Raises GrantSourceError, naming the file, when it cannot be read or understood."""
        return Grants(principal.token_role or Role.USER, self._users().get(principal.user_id, {}))

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _users(self) -> _Users:
        try:
            version = _version(self._path.stat())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise GrantSourceError(f"{self._path}: {error.strerror}") from None
        if self._known is None or self._known[0] != version:
            self._known = _read(self._path)
        return self._known[1]


def grants_come_from_this_file() -> bool:
    """Whether the service that this environment describes reads the file at all."""
    return not os.environ.get("SUPABASE_URL")


def grant_development_access(
    data_dir: Path, user_id: str, buildings: Sequence[str], appliances: Sequence[str] = (ALL,)
) -> Path:
    """Let a user use `appliances` of each of `buildings`, beside what is granted already; returns the file.

    Raises ValueError for an id that cannot be one, and GrantSourceError for a file that is broken, which stays as is.
    """
    for kind, ids in (("building", buildings), ("appliance", appliances)):
        if isinstance(ids, str) or not ids:
            raise ValueError(f"name at least one {kind}, in a list")
        for value in ids:
            if value != ALL and not is_requestable_id(value):
                raise ValueError(f"{value!r} is no {kind} id: 1 to 64 of A-Z a-z 0-9 _ -, or {ALL} for every one")
    if not user_id or not user_id.isprintable():
        raise ValueError(f"{user_id!r} is no user id")
    path = data_dir / GRANTS_FILE_NAME
    data_dir.mkdir(parents=True, exist_ok=True)
    # Readers need no lock, since the file is replaced whole; writers do, or the second would undo the first's grant.
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        users = {user: dict(granted) for user, granted in (_read(path)[1] if path.exists() else {}).items()}
        granted = users.setdefault(user_id, {})
        for building_id in buildings:
            granted[building_id] = granted.get(building_id, frozenset()) | frozenset(appliances)
        write_private_file(path, _written(users))
    finally:
        os.close(descriptor)
    return path


def _written(users: _Users) -> str:
    listed = {
        user_id: {building_id: sorted(appliances) for building_id, appliances in granted.items()}
        for user_id, granted in users.items()
    }
    return json.dumps({"note": NOTE, "users": listed}, indent=2, ensure_ascii=False)


def _version(status: os.stat_result) -> _Version:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[_Version, _Users]:
    """The file as it is, and which version of it that was."""
    try:
        with path.open("rb") as file:
            # Of the open file and before reading: a change meanwhile then differs from this, and is read next time.
            version = _version(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GrantSourceError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise GrantSourceError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    try:
        return version, _checked_users(json.loads(content, object_pairs_hook=_without_duplicates))
    except RecursionError:
        raise GrantSourceError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise GrantSourceError(f"{path}: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return dict(pairs)


def _checked_users(document: object) -> _Users:
    """The checked content. Raises ValueError naming the place that is wrong."""
    if not isinstance(document, dict) or not {"users"} <= document.keys() <= {"note", "users"}:
        raise ValueError('the file must be an object with "users" and, if you like, a "note"')
    users = _object(document["users"], "users")
    return {
        user_id: {
            _id(building_id, user_id): _appliances(appliances, f"{user_id!r}, {building_id!r}")
            for building_id, appliances in _object(granted, repr(user_id)).items()
        }
        for user_id, granted in users.items()
    }


def _object(value: object, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"{where}: not an object")


def _appliances(value: object, where: str) -> frozenset[str]:
    if isinstance(value, list):
        return frozenset(_id(appliance_id, where) for appliance_id in value)
    raise ValueError(f"{where}: not a list of appliance ids")


def _id(value: object, where: str) -> str:
    if not isinstance(value, str) or not (value == ALL or is_requestable_id(value)):
        raise ValueError(f"{where}: {value!r} is not an id")
    return value
