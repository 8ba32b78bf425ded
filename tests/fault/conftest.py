"""One service for each store, shared by the faults that it survives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault.bench import Bench, start_bench
from tests.fault.ledger import HEAD


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service on the store that the test's parameter names; prints the whole ledger at its end."""
    for one in start_bench(tmp_path_factory.mktemp("ledger"), request.param):
        yield one
        print("\n" + "\n".join([HEAD, *(verdict.row() for verdict in one.verdicts)]))
