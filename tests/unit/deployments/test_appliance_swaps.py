"""ApplianceModel without Ray: deploys that overlap, and loads that take their time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deployments.appliance import ApplianceModel
from deployments.contracts import Inference
from models.loader import LoadedModel
from tests.unit.deployments.replica import Shelf, deploy, request, run_batch, settled


class SlowLoads:
    """Loads that wait until they are released, per version."""

    def __init__(self, model: ApplianceModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gates = {version: threading.Event() for version in ("1.0.0", "2.0.0", "3.0.0", "9.9.9")}
        self.begun = {version: threading.Event() for version in self.gates}
        self.loaded: list[str] = []
        real = model._load

        def load(version: str) -> LoadedModel:
            self.loaded.append(version)
            self.begun[version].set()
            assert self.gates[version].wait(5)
            return real(version)

        monkeypatch.setattr(model, "_load", load)

    async def started(self, version: str) -> None:
        assert await asyncio.to_thread(self.begun[version].wait, 5)

    def release(self, *versions: str) -> None:
        for version in versions:
            self.gates[version].set()


async def test_a_deploy_does_not_wait_for_the_load_and_the_old_version_answers_meanwhile(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    async with asyncio.timeout(2):
        await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    status = await kettle.status()
    assert (status.model_version, status.wanted_version, status.loading) == ("1.0.0", "2.0.0", True)
    (result,) = await run_batch(kettle, request())
    assert isinstance(result, Inference)
    assert result.model_version == "1.0.0"
    loads.release("2.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "2.0.0"


async def test_a_later_deploy_overtakes_the_ones_that_wait(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "9.9.9"})
    await kettle.reconfigure({"model_version": "3.0.0"})
    loads.release("2.0.0", "3.0.0", "9.9.9")
    await settled(kettle)
    status = await kettle.status()
    assert (status.model_version, status.wanted_version, status.refused) == ("3.0.0", "3.0.0", None)
    assert loads.loaded == ["2.0.0", "3.0.0"]


async def test_a_rollback_during_a_load_never_serves_the_version_it_rolled_back(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "1.0.0"})
    loads.release("2.0.0")
    await loads.started("1.0.0")
    assert (await kettle.status()).model_version == "1.0.0"
    loads.release("1.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "1.0.0"


async def test_an_overtaken_version_that_fails_leaves_no_refusal(
    kettle: ApplianceModel, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    shelf.flip_a_byte()
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "3.0.0"})
    loads.release("2.0.0", "3.0.0")
    await settled(kettle)
    status = await kettle.status()
    assert (status.model_version, status.refused) == ("3.0.0", None)


async def test_at_the_first_start_an_overtaken_version_is_better_than_none(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = SlowLoads(kettle, monkeypatch)
    first = asyncio.create_task(kettle.reconfigure({"model_version": "1.0.0"}))
    await loads.started("1.0.0")
    second = asyncio.create_task(kettle.reconfigure({"model_version": "9.9.9"}))
    await asyncio.sleep(0)
    loads.release("1.0.0", "9.9.9")
    await asyncio.gather(first, second)
    status = await kettle.status()
    assert (status.model_version, status.wanted_version) == ("1.0.0", "9.9.9")
    assert status.refused is not None


async def test_a_cancelled_first_deploy_goes_on(kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = SlowLoads(kettle, monkeypatch)
    first = asyncio.create_task(kettle.reconfigure({"model_version": "1.0.0"}))
    await loads.started("1.0.0")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    loads.release("1.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "1.0.0"
