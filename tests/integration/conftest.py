"""One service for all tests here that only ask it things; tests that break it start their own.

It idles on a quarter of a core: tests that need none of it come first, those of other folders after its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.service import FRESH_FIGURES, Service, running_service

HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), environment=FRESH_FIGURES) as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    asking = [item for item in ours if "service" in getattr(item, "fixturenames", ())]
    places = [n for n, item in enumerate(items) if item in ours]
    for place, item in zip(places, [*(item for item in ours if item not in asking), *asking], strict=True):
        items[place] = item
