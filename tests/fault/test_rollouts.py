"""Rollouts under 40 requests a second: good ones fail and hold nobody, bad ones change nothing, bad canaries go.

Set NILM_ROLLOUTS to the number of rollouts of each kind (50 for the figures), NILM_GOOD_CANARY to the requests of the
canary that must stay.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fault.rollout_bench import (
    A,
    Answer,
    B,
    Buildings,
    RolloutBench,
    failures,
    flips_back,
    hold_ms,
    start_rollout_bench,
)

FULL = "NILM_ROLLOUTS" in os.environ
ROLLOUTS = int(os.environ.get("NILM_ROLLOUTS", "2"))
GOOD_CANARY_REQUESTS = int(os.environ.get("NILM_GOOD_CANARY", "400"))
PER_SECOND = 40.0
ROUNDS = 5 if FULL else 1
SLICE_S = 15.0 if FULL else 5.0
CALM_S = 3.0
"""Between two rollouts: as long without one as one takes, to compare with."""
HEAD = f"{'rollout':<24}{'done':>6}{'requests':>10}{'failed':>8}{'flips back':>12}{'longest hold ms':>17}{'calm':>8}"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutBench]:
    yield from start_rollout_bench(tmp_path_factory.mktemp("rollouts"))


@asynccontextmanager
async def load(bench: RolloutBench, per_second: float = PER_SECOND) -> AsyncIterator[Buildings]:
    """Clients of 80 buildings, until the end of the block."""
    buildings = bench.buildings()
    running = asyncio.create_task(buildings.run(per_second))
    await asyncio.sleep(3)
    try:
        yield buildings
    finally:
        buildings.stop()
        await running


class Slices:
    """The answers around each rollout, and in a stretch without one after it."""

    def __init__(self, name: str, buildings: Buildings) -> None:
        self.name = name
        self._buildings = buildings
        self._rollouts: list[tuple[float, float]] = []
        self.flips = 0

    @asynccontextmanager
    async def rollout(self, to: str) -> AsyncIterator[None]:
        """One rollout inside; afterwards whoever had version `to` must not have lost it."""
        start = time.monotonic()
        yield
        await asyncio.sleep(0.5)
        end = time.monotonic()
        self._rollouts.append((start, end))
        self.flips += flips_back(self._buildings.between(start, end), to)
        await asyncio.sleep(CALM_S)

    def report(self) -> list[Answer]:
        """Prints the row; gives the answers of all rollouts."""
        answers = [one for start, end in self._rollouts for one in self._buildings.between(start, end)]
        holds = [hold_ms(self._buildings.between(start, end)) for start, end in self._rollouts]
        calm = [hold_ms(self._buildings.between(end, end + CALM_S - 0.5)) for _, end in self._rollouts]
        failed = sum(failures(self._buildings.answers).values())
        print(
            f"\n{HEAD}\n{self.name:<24}{len(holds):>6}{len(answers):>10}{failed:>8}{self.flips:>12}"
            f"{max(holds):>17.0f}{max(calm):>8.0f}\n  median hold of a rollout {statistics.median(holds):.0f} ms, "
            f"of as long without one {statistics.median(calm):.0f} ms; "
            f"above 100 ms: {sum(hold > 100 for hold in holds)} and {sum(hold > 100 for hold in calm)}; "
            f"normal {1000 * statistics.median(one.took_s for one in answers):.0f} ms"
        )
        return answers


def applied(version: str) -> Any:
    return lambda state: state["serving_version"] == version and not state["preparing"]


async def test_good_rollouts_of_the_stable_version_fail_nobody(bench: RolloutBench) -> None:
    async with load(bench) as buildings:
        slices = Slices("stable", buildings)
        for n in range(ROLLOUTS):
            version = (B, A)[n % 2]
            async with slices.rollout(version):
                bench.deploy({"stable": version})
                await bench.until(applied(version))
        answers = slices.report()
    assert not failures(buildings.answers)
    assert {one.version for one in answers} <= {A, B}
    assert slices.flips == 0


async def test_good_canary_steps_fail_nobody_and_no_building_goes_back(bench: RolloutBench) -> None:
    await calm(bench)
    async with load(bench) as buildings:
        slices = Slices("canary 10, 50, 100, all", buildings)
        old, new, step = A, B, 0
        for _ in range(max(ROLLOUTS, 4)):
            percent = (10, 50, 100)[step] if step < 3 else None
            plan = {"stable": new} if percent is None else {"stable": old, "canary": canary(new, percent)}
            async with slices.rollout(new):
                bench.deploy(plan)
                await bench.until(applied(new) if percent is None else is_canary(percent))
            step += 1
            if step == 4:
                old, new, step = new, old, 0
        answers = slices.report()
    assert not failures(buildings.answers)
    assert {one.version for one in answers} <= {A, B}
    assert slices.flips == 0


async def test_a_change_of_the_code_with_surge_fails_nobody(bench: RolloutBench) -> None:
    await calm(bench)
    async with load(bench) as buildings:
        slices = Slices("code, with surge", buildings)
        for n in range(max(1, ROLLOUTS // 2) if not FULL else ROLLOUTS):
            before = replica_ids(bench)
            async with slices.rollout(A):
                options = {"num_cpus": 0.2, "runtime_env": {"env_vars": {"NILM_BUILD": f"{n}-{time.time_ns()}"}}}
                bench.deploy({"stable": A}, ray_actor_options=options)
                await eventually(lambda: (now := replica_ids(bench)) and not now & before)  # noqa: B023
        answers = slices.report()
    assert not failures(buildings.answers)
    assert {one.version for one in answers} == {A}


BAD = {
    "wrong sha": ({"stable": "3.0.0-sha"}, "sha256_mismatch"),
    "truncated file": ({"stable": "3.0.1-truncated"}, "not_safetensors"),
    "wrong shape": ({"stable": A, "canary": {"version": "3.0.2-shape", "percent": 10}}, "weights_mismatch"),
    "NaN golden": ({"stable": "3.0.3-golden"}, "golden_mismatch"),
    "NaN weights": ({"stable": A, "shadow": {"version": "3.0.6-nan-weights"}}, "weights_not_finite"),
    "raising constructor": ({"stable": A, "canary": {"version": "3.0.4-raises", "percent": 50}}, "load_failed"),
    "misspelt key": ({"stabel": A}, "stabel"),
    "percent out of range": ({"stable": A, "canary": {"version": B, "percent": 101}}, "percent"),
    "unregistered": ({"stable": "9.9.9"}, "9.9.9"),
}


ONE_OF_A_KIND = {"wrong sha", "NaN golden", "raising constructor", "misspelt key", "unregistered"}
"""A file, an output, code, a form, a name. The other reasons are told apart by the tests of `Versions`."""


async def test_bad_rollouts_change_nothing_and_say_why(bench: RolloutBench) -> None:
    await calm(bench)
    lines = []
    async with load(bench) as buildings:
        cases = {name: BAD[name] for name in BAD if FULL or name in ONE_OF_A_KIND}
        if FULL:
            cases["hanging load"] = ({"stable": "3.0.5-hangs"}, "load_timeout")
        for name, (plan, reason) in cases.items():
            start = time.monotonic()
            bench.deploy(plan)
            text = await refusal(bench, reason)
            seconds = time.monotonic() - start
            bench.deploy({"stable": A})
            await eventually(lambda: bench.rollout_status()[0] == "HEALTHY")
            recovered = time.monotonic() - start - seconds
            answers = buildings.between(start, time.monotonic())
            failed = sum(failures(answers).values())
            lines.append(f"{name:<22}{len(answers):>9}{failed:>8}{seconds:>9.1f} s{recovered:>10.1f} s  {text[:110]}")
            assert {one.version for one in answers if one.status == 200} == {A}
    print(f"\n{'bad rollout':<22}{'requests':>9}{'failed':>8}{'refused':>11}{'recovered':>12}  reason")
    print("\n".join(lines))
    assert not failures(buildings.answers)


async def eventually(holds: Callable[[], object], within_s: float = 120) -> None:
    """Until it does; asked in a thread."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end
        await asyncio.sleep(0.3)


async def refusal(bench: RolloutBench, reason: str) -> str:
    """What `serve status` says, once it says this."""
    end = time.monotonic() + 120
    while True:
        status, text = await asyncio.to_thread(bench.rollout_status)
        # A load that hangs is refused after the deploy was done: then the health check says so.
        if status in ("DEPLOY_FAILED", "UNHEALTHY") and reason in text:
            return text.partition("RolloutRefused: ")[2]
        if time.monotonic() > end:
            raise AssertionError(f"not refused: {status} {text}; {await bench.state()}")
        await asyncio.sleep(0.3)


async def test_a_hanging_load_holds_nobody_and_is_taken_back_at_once(bench: RolloutBench) -> None:
    await calm(bench)
    async with load(bench) as buildings:
        bench.deploy({"stable": "3.0.5-hangs"})
        await bench.until(lambda state: state["preparing"] == ["3.0.5-hangs"])
        bench.deploy({"stable": B})
        start = time.monotonic()
        await bench.until(applied(B))
        print(f"\ntaken back {time.monotonic() - start:.1f} s after the deploy")
        bench.deploy({"stable": A})
        await bench.until(applied(A))
    assert not failures(buildings.answers)
    assert {one.version for one in buildings.answers} == {A, B}


async def demoted(bench: RolloutBench, plan: dict[str, Any]) -> str:
    """Why the canary of this plan was demoted, after it had answered for all; it answers for nobody any more."""
    await calm(bench)
    async with load(bench) as buildings:
        version, percent = plan["canary"]["version"], plan["canary"]["percent"]
        bench.deploy(plan)
        await bench.until(is_canary(percent))
        start = time.monotonic()
        # One NaN in a hundred is known for sure after 375 windows as a rule, and 1,450 at most.
        state = await bench.until(lambda now: now["canary"] and now["canary"]["demoted"], within_s=240)
        seconds = time.monotonic() - start
        answered = [one for one in buildings.between(start, start + seconds) if one.version == version]
        print(f"\n{version} at {percent:g} %: demoted after {seconds:.1f} s and {len(answered)} of its answers")
        print(f"  {state['canary']['demoted']}")
        await asyncio.sleep(1.0)
        after = time.monotonic()
        await asyncio.sleep(3.0)
    assert not failures(buildings.answers)
    assert {one.version for one in buildings.between(after, time.monotonic())} == {A}
    return str(state["canary"]["demoted"])


@pytest.mark.parametrize(
    ("version", "guard", "reason"),
    [
        ("4.0.2-nan", {}, "errors"),
        *([("4.0.1-slow", {"slow_ms": 150}, "slower than 150 ms")] if FULL else []),
    ],
)
async def test_a_wrong_canary_is_demoted(bench: RolloutBench, version: str, guard: Any, reason: str) -> None:
    assert reason in await demoted(bench, {"stable": A, "canary": canary(version, 100.0), "guard": guard})


async def test_a_canary_that_was_demoted_stays_so_when_everything_is_started_anew(bench: RolloutBench) -> None:
    plan = {"stable": A, "canary": canary("4.0.0-scaled", 100.0)}
    said = await demoted(bench, plan)
    assert "mean power" in said
    bench.write(plan)
    bench.service.kill_everything()
    await asyncio.to_thread(bench.service.process.wait)
    bench.service.start_again()
    await asyncio.to_thread(bench.service.wait_ready)
    bench.write({"stable": A})  # other tests find the file as it was
    async with load(bench) as buildings:
        state = await bench.state()
    assert state["canary"]["demoted"] == said
    assert {(one.status, one.version) for one in buildings.answers} == {(200, A)}


async def test_a_good_canary_stays(bench: RolloutBench) -> None:
    await calm(bench)
    async with load(bench) as buildings:
        bench.deploy({"stable": A, "canary": canary(B, 50.0), "guard": {"min_windows": 50, "over_windows": 1000}})
        await bench.until(is_canary(50))
        await eventually(lambda: len(buildings.answers) >= GOOD_CANARY_REQUESTS, within_s=3600)
        state = await bench.state()
        answered = sum(one.version == B for one in buildings.answers)
        print(f"\na good canary after {len(buildings.answers)} requests, {answered} of them its own: {state['canary']}")
    assert state["canary"]["demoted"] is None
    assert answered > 0
    assert not failures(buildings.answers)


async def test_a_shadow_delays_nobody_and_goes_first_under_overload(bench: RolloutBench) -> None:
    ratios = []
    plain: dict[str, object] = {"stable": A}
    async with load(bench, PER_SECOND / 2) as buildings:
        for _ in range(ROUNDS):
            p99 = {}
            for name, plan in (("without", plain), ("with", plain | {"shadow": {"version": B}})):
                bench.deploy(plan)
                await bench.until(lambda state, plan=plan: (state["shadow_version"] == B) == ("shadow" in plan))
                start = time.monotonic()
                await asyncio.sleep(SLICE_S)
                p99[name] = quantile([one.took_s for one in buildings.between(start, time.monotonic())], 0.99)
            ratios.append(p99["with"] / p99["without"])
    before = await bench.of_version("shadow")
    compared, dropped = before["compared"], before["dropped"]
    assert not failures(buildings.answers)
    assert compared > 0
    assert before["disagreements"] == 0  # the shadow is the stable version under another name
    print(f"\nshadow at 1.0: p99 with over without, {ROUNDS} rounds: median {statistics.median(ratios):.2f}, "
          f"{min(ratios):.2f} to {max(ratios):.2f}; compared {compared:.0f} windows")  # fmt: skip
    spared_calm = dropped / (compared + dropped)
    async with load(bench, 20 * PER_SECOND) as crowd:
        await asyncio.sleep(SLICE_S)
    after = await bench.of_version("shadow")
    seen, spared = (after[name] - before[name] for name in ("compared", "dropped"))
    print(f"overload: {len(crowd.answers)} answered, refused {sum(failures(crowd.answers).values())}; "
          f"the shadow saw {seen:.0f} windows and was spared {spared:.0f}; calm: {spared_calm:.0%}")  # fmt: skip
    # How much of its work the machine still had time for depends on the machine; that the shadow lost some, and
    # nobody else did, does not.
    assert spared / (seen + spared) > max(spared_calm, 0.05)
    assert not failures(crowd.answers)
    await calm(bench)


async def test_every_reload_of_many_serves_what_the_file_says(bench: RolloutBench) -> None:
    await calm(bench)
    (pid,) = [one["pid"] for one in bench.service.deployments()["kettle"]["replicas"]]
    resident_mb = []
    reloads = 200 if FULL else 4
    with bench.service.client() as client:
        for n in range(reloads):
            version = (B, A)[n % 2]
            bench.deploy({"stable": version, "shadow": {"version": (A, B)[n % 2]}})
            await bench.until(lambda state, version=version: applied(version)(state) and state["shadow_version"])
            reply = await asyncio.to_thread(client.post, "/admin/reload-models", headers=bench.operator)
            assert reply.status_code == 200, reply.text
            (replica,) = reply.json()["replicas"]
            assert replica["settled"]
            assert replica["versions"]["stable"] == version
            resident_mb.append(resident(pid))
    half = resident_mb[len(resident_mb) // 2 :]
    slope_kb = 1000 * float(np.polyfit(range(len(half)), half, 1)[0])
    print(f"\n{reloads} reloads: {resident_mb[0]:.0f} MB after the first, {resident_mb[-1]:.0f} MB after the last; "
          f"slope over the second half {slope_kb:+.0f} kB a reload")  # fmt: skip


def resident(pid: int) -> float:
    """Megabytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q))


def canary(version: str, percent: float) -> dict[str, object]:
    return {"version": version, "percent": percent}


def is_canary(percent: float) -> Any:
    return lambda state: state["canary"] and state["canary"]["percent"] == percent and not state["preparing"]


def replica_ids(bench: RolloutBench) -> set[str]:
    """Replicas of the kettle that run."""
    replicas = bench.service.deployments()["kettle"]["replicas"]
    return {one["replica_id"] for one in replicas if one["state"] in ("RUNNING", "STARTING")}


async def calm(bench: RolloutBench) -> None:
    """Back to the version that every test begins with."""
    bench.deploy({"stable": A})
    await bench.until(lambda state: applied(A)(state) and state["canary"] is None)
