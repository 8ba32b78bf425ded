"""Versions: loads beside what serves, refuses with a reason, switches at an instant, and frees what served before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from deployments import versions as versions_module
from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import Role
from deployments.versions import Serving, VersionRefused, Versions, in_background
from models.architectures import build
from models.engines import Engine
from models.loader import golden_arrays, load_verified
from models.registry import Registry, RegistryEntry
from models.source import RegistrySource
from tests.unit.deployments.replica import PARAMS, WINDOW, Shelf, deploy, directive, freed, plan
from tests.unit.models.engine_evidence import on_openvino


def served(versions: Versions) -> dict[Role, str]:
    serving = versions.current()
    return {} if serving is None else {one.role: one.model_version for one in serving.loaded}


async def refused(versions: Versions, wanted: Any) -> RefusedVersion:
    with pytest.raises(VersionRefused) as error:
        await versions.prepare(directive(wanted))
    return error.value.refused


async def test_the_first_plan_is_loaded_and_served(versions: Versions, shelf: Shelf) -> None:
    assert versions.current() is None
    order = await deploy(versions, plan("1.0.0", canary="2.0.0", shadow="3.0.0"))
    serving = versions.current()
    assert serving is not None
    assert serving.directive == order
    assert [(one.role, one.model_version, one.artifact_sha256) for one in serving.loaded] == [
        (role, entry["model_version"], entry["artifact_sha256"])
        for role, entry in zip(Role, shelf.entries, strict=True)
    ]
    assert len(versions.registry_sha256) == 64


async def test_what_is_prepared_does_not_serve(versions: Versions) -> None:
    await deploy(versions, plan("1.0.0"))
    order = directive(plan("2.0.0"))
    await versions.prepare(order)
    assert (versions.prepared, served(versions)) == (order.number, {Role.STABLE: "1.0.0"})
    assert versions.switch(order)
    assert (served(versions), versions.prepared) == ({Role.STABLE: "2.0.0"}, None)


async def test_it_serves_from_its_instant_on_and_is_told_once(shelf: Shelf) -> None:
    told: list[Serving] = []
    versions = Versions("kettle", RegistrySource(str(shelf.registry)), "cpu", told.append)
    await deploy(versions, plan("1.0.0"))
    order = directive(plan("2.0.0"))
    await versions.prepare(order)
    at_s = time.time() + 0.1
    assert versions.switch(replace(order, activate_at_s=at_s))
    assert served(versions) == {Role.STABLE: "1.0.0"}
    seen = []
    while time.time() < at_s + 0.01:
        before = time.time()
        seen.append((served(versions)[Role.STABLE], before, time.time()))
        await asyncio.sleep(0.002)
    assert all(end >= at_s for version, _, end in seen if version == "2.0.0")
    assert all(start < at_s for version, start, _ in seen if version == "1.0.0")
    assert seen[-1][0] == "2.0.0"
    assert [serving.stable.entry.model_version for serving in told] == ["1.0.0", "2.0.0"]


async def test_a_later_directive_may_be_prepared_while_the_instant_of_another_is_awaited(versions: Versions) -> None:
    await deploy(versions, plan("1.0.0"))
    second, third = directive(plan("2.0.0"), at_s=time.time() + 0.05), directive(plan("3.0.0"))
    await versions.prepare(second)
    versions.switch(second)
    await versions.prepare(third)
    await asyncio.sleep(max(0.0, second.activate_at_s - time.time()))
    assert served(versions) == {Role.STABLE: "2.0.0"}
    assert versions.switch(third)
    assert served(versions) == {Role.STABLE: "3.0.0"}


async def test_what_was_not_prepared_is_not_switched_to(versions: Versions) -> None:
    assert not versions.switch(directive(plan("1.0.0")))
    await deploy(versions, plan("1.0.0"))
    await versions.prepare(directive(plan("2.0.0")))
    assert not versions.switch(directive(plan("2.0.0"))), "another directive, though of the same versions"
    versions.forget_prepared()
    assert (versions.prepared, served(versions)) == (None, {Role.STABLE: "1.0.0"})


async def test_a_demotion_needs_no_preparation_and_takes_only_the_canary(versions: Versions) -> None:
    wanted = plan("1.0.0", canary="2.0.0", shadow="3.0.0")
    order = await deploy(versions, wanted)
    assert versions.switch(directive(wanted, of=order, demoted=True))
    assert served(versions) == {Role.STABLE: "1.0.0", Role.SHADOW: "3.0.0"}
    serving = versions.current()
    assert serving is not None
    assert serving.role_for("home-1") is Role.STABLE


async def test_a_demoted_canary_is_not_loaded_at_all(versions: Versions, shelf: Shelf) -> None:
    shelf.flip_a_byte("2.0.0")
    await deploy(versions, plan("1.0.0", canary="2.0.0"), demoted=True)
    assert served(versions) == {Role.STABLE: "1.0.0"}


async def test_buildings_of_the_canary_are_those_of_the_plan(versions: Versions) -> None:
    await deploy(versions, plan("1.0.0", canary="2.0.0", percent=50.0))
    serving = versions.current()
    assert serving is not None
    assert {serving.role_for(f"home-{n}") for n in range(50)} == {Role.STABLE, Role.CANARY}
    await deploy(versions, plan("1.0.0", canary="2.0.0", percent=0.0))
    serving = versions.current()
    assert serving is not None
    assert {serving.role_for(f"home-{n}") for n in range(50)} == {Role.STABLE}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions that were read from disk."""
    found: list[str] = []

    def load(entry: RegistryEntry, *rest: Any) -> Any:
        found.append(entry.model_version)
        return load_verified(entry, *rest)

    monkeypatch.setattr(versions_module, "load_verified", load)
    return found


async def test_a_version_that_is_loaded_is_not_loaded_again(versions: Versions, loads: list[str]) -> None:
    await deploy(versions, plan("1.0.0", canary="2.0.0"))
    await deploy(versions, plan("2.0.0"))  # promoted
    await versions.prepare(directive(plan("3.0.0")))
    await versions.prepare(directive(plan("3.0.0", canary="2.0.0")))
    assert loads == ["1.0.0", "2.0.0", "3.0.0"]
    await deploy(versions, plan("1.0.0"))
    assert loads == ["1.0.0", "2.0.0", "3.0.0", "1.0.0"]


async def test_a_version_whose_file_is_another_is_loaded_again(
    versions: Versions, shelf: Shelf, loads: list[str]
) -> None:
    order = await deploy(versions, plan("2.0.0"))
    before = versions.registry_sha256
    torch.manual_seed(99)
    rewrite(shelf, build("CNNTransformer", PARAMS, WINDOW).state_dict())
    await deploy(versions, plan("2.0.0"), of=order)
    serving = versions.current()
    assert serving is not None
    assert serving.stable.entry.artifact_sha256 == shelf.entries[1]["artifact_sha256"]
    assert loads == ["2.0.0", "2.0.0"]
    assert versions.registry_sha256 != before


def on_another_engine(shelf: Shelf, **figures: float) -> None:
    """2.0.0 runs on OpenVINO from now on, with golden windows to compare it on."""
    registry = Registry.load(shelf.registry)
    windows_kw = np.random.default_rng(3).uniform(0.1, 3.0, (3, WINDOW)).astype(np.float32)
    outputs = golden_arrays(load_verified(registry.resolve("kettle", "2.0.0"), registry.root).predict(windows_kw))
    golden = shelf.artifact("2.0.0").with_name("golden.npz")
    np.savez(golden, windows_kw=windows_kw, **outputs)  # type: ignore[arg-type]
    row = shelf.entries[1] | {"golden_path": str(golden.relative_to(shelf.root))}
    shelf.entries[1] = row | on_openvino(row, **figures)
    shelf.registry.write_text(json.dumps({"models": shelf.entries}), encoding="utf-8")


async def test_a_version_whose_engine_is_another_is_loaded_again(
    versions: Versions, shelf: Shelf, loads: list[str]
) -> None:
    await deploy(versions, plan("2.0.0"))
    on_another_engine(shelf)
    await deploy(versions, plan("2.0.0"))
    serving = versions.current()
    assert serving is not None
    assert serving.stable.engine is Engine.OPENVINO
    assert loads == ["2.0.0", "2.0.0"]


async def test_an_engine_without_evidence_is_refused_and_the_same_version_goes_on_with_torch(
    versions: Versions, shelf: Shelf
) -> None:
    await deploy(versions, plan("2.0.0"))
    before = versions.current()
    on_another_engine(shelf, engine_f1=0.9)
    found = await refused(versions, plan("2.0.0"))
    assert (found.model_version, found.reason) == ("2.0.0", "engine_unproven")
    assert versions.current() is before


# What is refused -------------------------------------------------------------------------------------------------


def truncate(shelf: Shelf) -> None:
    path = shelf.artifact("2.0.0")
    path.write_bytes(path.read_bytes()[:-4])


def poison(shelf: Shelf) -> None:
    weights = safetensors.torch.load_file(shelf.artifact("2.0.0"))
    next(iter(weights.values())).view(-1)[0] = float("nan")
    rewrite(shelf, weights)


def reshape(shelf: Shelf) -> None:
    torch.manual_seed(0)
    rewrite(shelf, build("CNNTransformer", PARAMS | {"d_model": 16}, WINDOW).state_dict())


def rewrite(shelf: Shelf, weights: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(weights, shelf.artifact("2.0.0"))
    shelf.entries[1] = shelf.entries[1] | {
        "artifact_sha256": hashlib.sha256(shelf.artifact("2.0.0").read_bytes()).hexdigest()
    }
    shelf.registry.write_text(json.dumps({"models": shelf.entries}), encoding="utf-8")


DAMAGE: list[tuple[str, Callable[[Shelf], object]]] = [
    ("sha256_mismatch", Shelf.flip_a_byte),
    ("sha256_mismatch", truncate),
    ("artifact_missing", lambda shelf: shelf.artifact("2.0.0").unlink()),
    ("weights_not_finite", poison),
    ("weights_mismatch", reshape),
    ("no_registry", lambda shelf: shelf.registry.write_text("{")),
    ("no_registry", lambda shelf: shelf.registry.unlink()),
]
ROLES = [plan("2.0.0"), plan("1.0.0", canary="2.0.0"), plan("1.0.0", shadow="2.0.0")]


@pytest.mark.parametrize("wanted", ROLES, ids=list(Role))
@pytest.mark.parametrize(("reason", "damage"), DAMAGE)
async def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_serves(
    versions: Versions, shelf: Shelf, reason: str, damage: Callable[[Shelf], object], wanted: Any
) -> None:
    await deploy(versions, plan("1.0.0"))
    before = versions.current()
    damage(shelf)
    found = await refused(versions, wanted)
    assert found.reason == reason
    assert "2.0.0" in found.model_version
    assert (versions.current(), versions.prepared) == (before, None)


async def test_an_unregistered_version_is_refused_and_those_that_exist_are_named(versions: Versions) -> None:
    found = await refused(versions, plan("9.9.9"))
    assert (found.model_version, found.reason) == ("9.9.9", "not_registered")
    assert "1.0.0, 2.0.0, 3.0.0" in found.detail


async def test_a_version_of_another_shape_is_refused_as_canary(versions: Versions, shelf: Shelf) -> None:
    shelf.entries[1] = shelf.entries[1] | {"provisional_sample_index": 10}
    shelf.registry.write_text(json.dumps({"models": shelf.entries}), encoding="utf-8")
    found = await refused(versions, plan("1.0.0", canary="2.0.0"))
    assert "the provisional answer for sample 10" in found.detail


async def test_whatever_a_load_raises_is_a_refusal_without_what_it_says(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("at /secret/path")

    monkeypatch.setattr(versions_module, "load_verified", broken)
    assert await refused(versions, plan("2.0.0")) == RefusedVersion("2.0.0", "load_failed", "MemoryError")


async def test_what_was_refused_may_be_repaired(versions: Versions, shelf: Shelf) -> None:
    whole = shelf.artifact("2.0.0").read_bytes()
    shelf.flip_a_byte()
    await refused(versions, plan("2.0.0"))
    shelf.artifact("2.0.0").write_bytes(whole)
    await deploy(versions, plan("2.0.0"))
    assert served(versions) == {Role.STABLE: "2.0.0"}


# Loads that take their time, and memory --------------------------------------------------------------------------


async def test_a_load_that_hangs_blocks_nobody_and_its_result_is_dropped(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(versions, plan("1.0.0"))
    begun, gate = threading.Event(), threading.Event()

    def load(entry: RegistryEntry, *rest: Any) -> Any:
        if entry.model_version == "2.0.0":
            begun.set()
            assert gate.wait(10)
        return load_verified(entry, *rest)

    monkeypatch.setattr(versions_module, "load_verified", load)
    hanging = asyncio.create_task(versions.prepare(directive(plan("2.0.0"))))
    assert await asyncio.to_thread(begun.wait, 5)
    hanging.cancel()
    await deploy(versions, plan("3.0.0"))
    gate.set()
    await asyncio.gather(hanging, return_exceptions=True)
    assert hanging.cancelled()
    await asyncio.sleep(0.02)
    assert (served(versions), versions.prepared) == ({Role.STABLE: "3.0.0"}, None)


async def test_a_version_that_does_not_serve_any_more_is_freed(versions: Versions) -> None:
    await deploy(versions, plan("1.0.0", canary="2.0.0"))
    serving = versions.current()
    assert serving is not None
    old = [weakref.ref(model) for model in serving.models.values()]
    del serving
    await versions.prepare(directive(plan("1.0.0", shadow="2.0.0")))
    versions.forget_prepared()
    await deploy(versions, plan("3.0.0"))
    for reference in old:
        await freed(reference)


async def test_a_prepared_version_that_will_not_come_is_freed(versions: Versions) -> None:
    await deploy(versions, plan("1.0.0"))
    await versions.prepare(directive(plan("2.0.0")))
    assert versions._prepared is not None
    prepared = weakref.ref(versions._prepared.models[Role.STABLE])
    versions.forget_prepared()
    await freed(prepared)


async def test_work_in_the_background_gives_its_result_or_raises() -> None:
    assert await in_background(lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        await in_background(lambda: {}["x"])  # type: ignore[index]


async def test_work_in_the_background_does_not_keep_the_process() -> None:
    gate = threading.Event()
    waiting = asyncio.create_task(in_background(lambda: gate.wait(10)))
    await asyncio.sleep(0.01)
    thread = next(one for one in threading.enumerate() if one.name == "load")
    assert thread.daemon
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.set()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive(), "and a result that nobody waits for is no fault"


def test_work_that_outlives_its_loop_makes_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise: list[object] = []
    monkeypatch.setattr(threading, "excepthook", noise.append)
    gate = threading.Event()

    async def give_up() -> threading.Thread:
        task = asyncio.create_task(in_background(lambda: gate.wait(10)))
        await asyncio.sleep(0.01)
        thread = next(one for one in threading.enumerate() if one.name == "load")
        task.cancel()
        return thread

    thread = asyncio.run(give_up())
    gate.set()
    thread.join(5)
    assert (thread.is_alive(), noise) == (False, [])
