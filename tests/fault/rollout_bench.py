"""A service whose rollouts are changed under load: a registry of good and bad versions, clients that watch versions."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import safetensors.torch
import yaml

from models.registry import Registry, RegistryEntry, registry_text
from serve_app.cli.cluster import PRODUCTION_MODE
from serve_app.demo.household import synthetic_household
from tests.integration.service import (
    ADMIN_TOKEN,
    FIGURES_LATE_S,
    FRESH_FIGURES,
    ROOT,
    SECRET,
    Service,
    read_models,
    running_service,
    service_config,
)

A, B = "2.0.0", "2.0.1"
"""Two good versions of the kettle, of one network each: the second is the first under another name."""
APPLIED_WITHIN_S = 90.0


def registry_with_all_sorts(folder: Path) -> Path:
    """The packaged kettle 2.0.0, a good copy, and versions that must not serve, or not long. All beside each other."""
    packaged = Registry.load()
    good = packaged.resolve("kettle", A)
    weights = (packaged.root / good.artifact_path).read_bytes()
    entries: list[RegistryEntry] = []

    def add(version: str, content: bytes = weights, golden: bool = True, **changes: Any) -> RegistryEntry:
        path = folder / "artifacts" / version / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        entry = dataclasses.replace(
            good,
            model_version=version,
            artifact_path=str(path.relative_to(folder)),
            artifact_sha256=hashlib.sha256(content).hexdigest(),
            golden_path=f"artifacts/{version}/golden.npz" if golden else None,
            card_path=None,
            is_active=version == A,
        )
        if golden:
            shutil.copy(packaged.root / str(good.golden_path), path.with_name("golden.npz"))
        entry = dataclasses.replace(entry, **changes)
        entries.append(entry)
        return entry

    add(A)
    add(B)
    add("3.0.0-sha", artifact_sha256="0" * 64)
    add("3.0.1-truncated", content=weights[: len(weights) // 2])
    add("3.0.2-shape", architecture_params={"channels": [8, 16, 32]})
    nan_golden = add("3.0.3-golden")
    with np.load(folder / str(nan_golden.golden_path)) as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["final_predicted_w"] = np.full_like(arrays["final_predicted_w"], np.nan)
    np.savez(folder / str(nan_golden.golden_path), **arrays)
    add("3.0.4-raises", golden=False, architecture="Raises", architecture_params={})
    add("3.0.5-hangs", golden=False, architecture="Hangs", architecture_params={})
    add("4.0.0-scaled", golden=False, architecture="Scaled")
    add("4.0.1-slow", golden=False, architecture="Slow")
    add("4.0.2-nan", golden=False, architecture="SometimesNaN")
    broken = dict(safetensors.torch.load(weights))
    broken["heads.weight"] = broken["heads.weight"] + float("nan")
    add("3.0.6-nan-weights", content=safetensors.torch.save(broken), golden=False)
    path = folder / "registry.json"
    path.write_text(registry_text(entries), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Answer:
    """One request and its reply; instants by `time.monotonic()`."""

    building: str
    sent_s: float
    answered_s: float
    status: int
    version: str

    @property
    def took_s(self) -> float:
        return self.answered_s - self.sent_s


@dataclass
class Buildings:
    """`count` buildings, each with a client of its own that sends one request after the other at a steady rate."""

    url: str
    token: str
    windows: list[list[float]]
    count: int = 80
    answers: list[Answer] = field(default_factory=list)
    _stop: bool = False

    async def run(self, per_second: float) -> None:
        """Until `stop`."""
        headers = {"Authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(max_connections=self.count, max_keepalive_connections=self.count)
        async with (
            httpx.AsyncClient(base_url=self.url, headers=headers, timeout=15, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for n in range(self.count):
                group.create_task(self._building(client, n, self.count / per_second))

    def stop(self) -> None:
        self._stop = True

    def between(self, start_s: float, end_s: float) -> list[Answer]:
        """Those sent then."""
        return [one for one in self.answers if start_s <= one.sent_s < end_s]

    async def _building(self, client: httpx.AsyncClient, n: int, period_s: float) -> None:
        windows = itertools.cycle(self.windows[n % len(self.windows) :] + self.windows[: n % len(self.windows)])
        next_s = time.monotonic() + random.Random(n).random() * period_s  # noqa: S311
        while not self._stop:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            # One that is late does not catch up: a queue that once formed at the limit would stay for good.
            next_s = max(next_s + period_s, time.monotonic())
            body = {"building_id": f"building-{n}", "appliance_id": "kettle", "window": next(windows)}
            sent_s = time.monotonic()
            try:
                reply = await client.post("/infer", json=body)
                version = reply.json().get("model_version", "") if reply.status_code == 200 else reply.text[:200]
                answer = Answer(f"building-{n}", sent_s, time.monotonic(), reply.status_code, version)
            except httpx.TransportError as error:
                answer = Answer(f"building-{n}", sent_s, time.monotonic(), 0, type(error).__name__)
            self.answers.append(answer)


@dataclass
class RolloutBench:
    """A running service with one replica of the kettle, and the file that its rollouts are written in."""

    service: Service
    windows: list[list[float]]

    def buildings(self, count: int = 80) -> Buildings:
        return Buildings(self.service.url, self.service.token(), self.windows, count)

    @property
    def operator(self) -> dict[str, str]:
        """Headers of somebody who may call the admin routes."""
        claims = {"sub": "operator", "aud": "authenticated", "iss": "nilm-development", "exp": time.time() + 3600}
        token = jwt.encode(claims | {"app_metadata": {"role": "admin"}}, SECRET, algorithm="HS256")
        return {"Authorization": f"Bearer {token}", "X-Admin-Token": ADMIN_TOKEN}

    def deploy(self, kettle: object, **of_kettle: object) -> None:
        """What `serve deploy` does with this plan in the file; `of_kettle`: other options of the model's deployment."""
        document = self._file_with(kettle, of_kettle)
        document["http_options"]["port"] = int(self.service.url.rsplit(":", 1)[1])
        self.service.serve_api().deploy(document)

    def write(self, kettle: object) -> None:
        """Into the file: what is served by whoever starts with it."""
        self.service.config.write_text(yaml.safe_dump(self._file_with(kettle, {}), sort_keys=False))

    def _file_with(self, kettle: object, of_kettle: dict[str, object]) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(self.service.config.read_text())
        for deployment in document["applications"][0]["deployments"]:
            if deployment["name"] == "rollout":
                deployment["user_config"] = {"kettle": kettle}
            if deployment["name"] == "kettle":
                deployment.update(of_kettle)
        return document

    async def state(self) -> dict[str, Any]:
        """The kettle's row of GET /models."""

        def read() -> dict[str, Any]:
            with self.service.client() as client:
                return dict(read_models(client)["appliances"][0])

        return await asyncio.to_thread(read)

    async def until(self, what: Any, within_s: float = APPLIED_WITHIN_S) -> dict[str, Any]:
        """The state, once `what(state)` is true."""
        end = time.monotonic() + within_s
        while not what(state := await self.state()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {within_s:g} s: {state}")
            await asyncio.sleep(0.1)
        return state

    async def of_version(self, role: str) -> dict[str, float]:
        """`nilm_version_...` of the kettle's version in that role, as it is when this is called."""
        await asyncio.sleep(FIGURES_LATE_S)
        told = await asyncio.to_thread(self.service.figures)
        names = ("compared", "dropped", "disagreements")
        return {name: told.value(f"nilm_version_{name}", appliance="kettle", role=role) for name in names}

    def rollout_status(self) -> tuple[str, str]:
        """What `serve status` says of the deployment that holds the rollout."""
        (application,) = self.service.serve_api().applications() or ()
        return next((d.status, d.reason) for d in application.deployments if d.name == "rollout")


def kettle_windows() -> list[list[float]]:
    """Windows of a made-up household's mains; in one of three a kettle boils at the sample that is answered for."""
    recording = synthetic_household(7, datetime(2026, 1, 5, tzinfo=UTC), 0, 20 * 1440)
    mains_kw = np.round(recording.aggregate_w / 1000, 4)
    boils = np.flatnonzero(recording.appliances_w["kettle"][256:-256] > 1500)
    chance = np.random.default_rng(7)
    starts = np.concatenate([chance.choice(boils, 67), chance.integers(0, len(mains_kw) - 512, 133)])
    return [mains_kw[start : start + 512].tolist() for start in chance.permutation(starts)]


def start_rollout_bench(folder: Path, **options: Any) -> Iterator[RolloutBench]:
    """One service with the versions above; A serves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "registry").mkdir()
    registry = registry_with_all_sorts(folder / "registry")
    config = service_config(
        folder / "serve_config.yaml",
        appliances=["kettle"],
        plans={"kettle": {"stable": A}},
        **options,
    )
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["import_path"] = "tests.fault.faulty_app:build"
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] == "kettle":
            # One stays one, also after an overload: what is measured is what one replica's clients see.
            deployment["autoscaling_config"]["max_replicas"] = 1
    config.write_text(yaml.safe_dump(document, sort_keys=False))
    environment = {"PYTHONPATH": str(ROOT), "MODEL_REGISTRY_URI": str(registry), **FRESH_FIGURES}
    # With Serve's defaults 40 requests a second fill two cores, and only queues are measured.
    with running_service(folder, config, PRODUCTION_MODE | environment) as service:
        yield RolloutBench(service, kettle_windows())


def flips_back(answers: list[Answer], to: str) -> int:
    """Changes of a building from version `to` to another, by the order in which its client got its answers."""
    last: dict[str, str] = {}
    flips = 0
    for one in sorted(answers, key=lambda answer: answer.answered_s):
        if last.get(one.building) == to and one.version != to:
            flips += 1
        last[one.building] = one.version
    return flips


def failures(answers: list[Answer]) -> Counter[tuple[int, str]]:
    """What was not answered with 200, by status and text."""
    return Counter((one.status, one.version) for one in answers if one.status != 200)


def hold_ms(answers: list[Answer]) -> float:
    """How much longer than half of them the longest took."""
    times = [one.took_s for one in answers]
    return 1000 * (max(times) - statistics.median(times))
