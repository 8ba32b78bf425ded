"""Who is calling. Built only from a verified token, and only from its admin-set parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller is to us. Never read from what the user can write, nor from the claim `role`."""

    USER = "user"
    ADMIN = "admin"
    """May use the admin routes."""
    SUPER_ADMIN = "super_admin"
    """An admin who may also use every building."""

    @property
    def is_admin(self) -> bool:
        return self is not Role.USER


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller.

    `token_role` comes from `app_metadata.role`, which only the identity provider's administrators can write; None
    when the token names none, and the user's profile decides. `user_metadata` is writable by the user and is never
    read; `role` is always "authenticated" and says nothing.
    """

    user_id: str
    token_role: Role | None = None
