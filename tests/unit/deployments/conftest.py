"""A kettle replica with three versions to choose from, no Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deployments import comparison
from deployments.versions import Versions
from models.source import RegistrySource
from tests.unit.deployments.replica import Kettle, Shelf


@pytest.fixture(scope="session")
def _packed(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    for seed, version in enumerate(("1.0.0", "2.0.0", "3.0.0")):
        shelf.add(version, seed)
    return shelf


@pytest.fixture
def shelf(_packed: Shelf, tmp_path: Path) -> Shelf:
    """A copy that a test may damage."""
    shutil.copytree(_packed.root, tmp_path, dirs_exist_ok=True)
    return Shelf(tmp_path, list(_packed.entries))


@pytest.fixture
def kettle(shelf: Shelf) -> Kettle:
    return Kettle(shelf)


@pytest.fixture
def versions(shelf: Shelf) -> Versions:
    return Versions("kettle", RegistrySource(str(shelf.registry)), "cpu", lambda serving: None)


@pytest.fixture(autouse=True)
def _time_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons rest when their thread gets no core: a matter of the machine, and of passes that a test holds."""
    monkeypatch.setattr(comparison, "STARVED_S", float("inf"))
