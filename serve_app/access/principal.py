"""Who is calling. Built only from a verified token, and only from its admin-set parts."""

from __future__ import annotations

from dataclasses import dataclass

ALL_BUILDINGS = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller.

    `buildings` comes from `app_metadata.buildings`, which only the identity provider's administrators can write;
    `user_metadata` is writable by the user and is never read. No list means no building: fail closed.
    """

    user_id: str
    buildings: frozenset[str]

    def may_use(self, building_id: str) -> bool:
        """True when this caller may read and write this building."""
        return building_id in self.buildings or ALL_BUILDINGS in self.buildings
