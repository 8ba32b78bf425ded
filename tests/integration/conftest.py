"""One service for all tests that only ask it things; tests that break it start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.service import FRESH_FIGURES, Service, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), environment=FRESH_FIGURES) as running:
        yield running
