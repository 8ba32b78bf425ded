"""One service for all tests here that only ask it things, gone before other folders' tests begin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.service import FRESH_FIGURES, Service, running_service


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), environment=FRESH_FIGURES) as running:
        yield running
