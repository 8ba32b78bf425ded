"""ApplianceModel: one appliance's versions behind dynamic batching.

Which versions, and which one answers for a building, is the coordinator's word (`follower`, `versions`); Serve's own
`reconfigure` is not used, because it takes a replica out of the rotation for a second. A canary that fails at a window
fails nobody: the stable version answers instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Iterable
from typing import Any

import ray
import torch
from ray import serve

from deployments import memory
from deployments.autoscaling import WINDOWS, HeldBack
from deployments.batching import Batcher
from deployments.blocks import InferenceBlock
from deployments.comparison import Answered, Comparison
from deployments.contracts import (
    ApplianceStatus,
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    InferenceResult,
)
from deployments.figures import ModelFigures
from deployments.follower import Follower
from deployments.forward import Call, Forward
from deployments.registry_source import registry_source
from deployments.rollout_contracts import Role
from deployments.tally import Said, Tally
from deployments.telemetry import Telemetry
from deployments.tracing import NS_PER_MS, Attributes, Tracing
from deployments.versions import Serving, Versions

MAX_BATCH_WINDOWS = 64
CANARY_PATIENCE_S = 2.0
"""Since a window came; then the stable version answers: a client's deadline, 10 s, leaves it the time."""
BUSY_WINDOWS = 32
"""Live windows in the replica from which on nothing is compared: half a full batch waits already."""
HUNG_S = 60.0
"""A full batch takes a tenth of a second."""
logger = logging.getLogger("ray.serve")


class ApplianceModel:
    """Runs the windows of one appliance.

    `coordinator`: the handle whose orders it follows. `device`: "cpu", "cuda" or "auto" (a GPU if there is one).
    """

    async def __init__(  # type: ignore[misc]
        self, appliance_id: str, coordinator: Any, device: str = "auto"
    ) -> None:
        # One thread a replica: several replicas share the machine, and torch's own pool would fight them.
        torch.set_num_threads(1)
        self._appliance_id = appliance_id
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._tally = Tally(appliance_id)
        self._versions = Versions(appliance_id, registry_source(), self._device, self._begin)
        context = ray.get_runtime_context()
        replica = serve.get_replica_context().replica_id.unique_id
        telemetry = Telemetry()
        self._figures = ModelFigures(telemetry, appliance_id, lambda: self._live)
        self._counting = asyncio.create_task(telemetry.run())
        self._tracing = Tracing(appliance_id, replica)
        self._closed = False
        self._follower = Follower(
            coordinator, replica, context.get_node_id(), appliance_id, self._versions, self._tally
        )
        self._stable = Forward("stable")
        self._canary = Forward("canary")
        # One for each role: nobody waits for a slow canary.
        self._stable_windows = Batcher(self._run_stable, MAX_BATCH_WINDOWS)
        self._canary_windows = Batcher(self._run_canary, MAX_BATCH_WINDOWS)
        self._comparison = Comparison(self._tally)
        self._live = 0
        self._held_back = HeldBack()
        self._logged: BaseException | None = None
        self._logged_plan: int | None = None
        self._following = asyncio.create_task(self._follower.run())
        # A new replica takes no traffic until this returns, so it is warm before its first window.
        await self._follower.settled.wait()
        if self._versions.current() is None and self._follower.peers:
            # Others serve: this one would only refuse what they can answer. Serve starts another.
            raise RuntimeError(f"{appliance_id} cannot serve: {self._follower.nothing}")
        memory.settle()

    def __del__(self) -> Awaitable[None] | None:
        """Serve's shutdown hook, which it awaits; Python calls it again when the object goes."""
        if getattr(self, "_closed", True):
            return None
        self._closed = True
        self._counting.cancel()  # passes on what it has
        return asyncio.to_thread(self._tracing.close) if self._tracing.on else None

    def _begin(self, serving: Serving) -> None:
        self._tally.begin(serving.directive.plan_number, serving.directive.plan.guard.slow_ms)
        if self._canary.busy:
            # A canary that hangs keeps its thread for ever: the next one must not wait for it.
            self._canary = self._canary.afresh()
            self._canary_windows = Batcher(self._run_canary, MAX_BATCH_WINDOWS)
        versions = ", ".join(
            f"{role} {model.entry.model_version} ({model.engine})" for role, model in serving.models.items()
        )
        logger.info("%s serves %s", self._appliance_id, versions)

    async def status(self) -> ApplianceStatus:
        """What this replica serves now."""
        serving = self._versions.current()
        entry = serving.stable.entry if serving else None
        return ApplianceStatus(
            appliance_id=self._appliance_id,
            model_id=entry.model_id if entry else None,
            model_version=entry.model_version if entry else None,
            artifact_sha256=entry.artifact_sha256 if entry else None,
            input_window_size=entry.input_window_size if entry else None,
            sample_indices=entry.sample_indices if entry else None,
            sample_period_s=entry.sample_period_s if entry else None,
            device=self._device,
            loading=self._follower.loading,
            nothing="" if entry else self._follower.nothing,
        )

    def check_health(self) -> None:
        """Raises when this replica cannot answer, or be led, any more; Serve then starts another in its place."""
        if self._stable.running_s > HUNG_S:
            raise RuntimeError(f"a forward pass of {self._appliance_id} hangs")
        if self._following.done():
            raise RuntimeError("this replica follows nobody any more")

    async def infer(self, block: InferenceBlock) -> list[InferenceResult]:
        """An answer per window, in their order; one that fails fails alone."""
        serving = self._versions.current()
        if serving is None:
            refused = InferenceRefused(InferenceRefusal.NO_MODEL, self._follower.nothing or "still loading")
            return [refused] * len(block.lengths)
        self._held_back.said(block.sender, block.waiting)
        self._live += len(block.lengths)
        try:
            answers = await asyncio.gather(
                *(self._answer(serving, request) for request in block.requests()), return_exceptions=True
            )
        finally:
            self._live -= len(block.lengths)
        return [self._failed(one) if isinstance(one, BaseException) else one for one in answers]

    def _answer(self, serving: Serving, request: InferenceRequest) -> Awaitable[InferenceResult]:
        if serving.role_for(request.building_id) is Role.CANARY:
            return self._ask_canary(request, serving.directive.plan_number)
        return self._stable_windows.put((request, time.perf_counter()))

    async def _ask_canary(self, request: InferenceRequest, plan: int) -> InferenceResult:
        """The stable version's answer where the canary has none, in time for that."""
        answer = None
        try:
            async with asyncio.timeout(CANARY_PATIENCE_S):
                answer = await self._canary_windows.put((request, time.perf_counter()))
        except TimeoutError:
            self._tally.failed(plan, Role.CANARY, 1)
        return answer or await self._stable_windows.put((request, time.perf_counter()))

    def _failed(self, error: BaseException) -> InferenceResult:
        if error is not self._logged:  # one for the whole batch
            logger.error("%s: a pass failed", self._appliance_id, exc_info=error)
            self._logged = error
        return InferenceRefused(InferenceRefusal.FAILED, type(error).__name__)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve scales by, see `autoscaling`: calls say little, each carries as many windows as there are."""
        return {WINDOWS: self._live + self._held_back.windows()}

    async def _run_stable(self, calls: list[Call]) -> list[InferenceResult]:
        serving = self._versions.current()
        if serving is None:
            return [InferenceRefused(InferenceRefusal.NO_MODEL, "no version is loaded") for _ in calls]
        results = await self._stable.run(serving.stable, calls)
        self._figures.ran(Role.STABLE, serving.stable.entry.model_version, results)
        self._trace(calls, results)
        number = serving.directive.plan_number
        self._count(number, Role.STABLE, zip(calls, results, strict=True))
        shadow, plan = serving.models.get(Role.SHADOW), serving.directive.plan.shadow
        if shadow is not None and plan is not None:
            for (request, _), result in zip(calls, results, strict=True):
                if isinstance(result, Inference) and random.random() < plan.sample:  # noqa: S311 - no secret
                    self._compare(Answered(number, Role.SHADOW, request, result, shadow))
        return results

    async def _run_canary(self, calls: list[Call]) -> list[InferenceResult | None]:
        """None where the stable version has to answer. Never raises."""
        serving = self._versions.current()
        canary = serving.models.get(Role.CANARY) if serving else None
        if serving is None or canary is None:
            return [None] * len(calls)  # demoted, while they waited
        number = serving.directive.plan_number
        if self._canary.busy:  # with a batch that was given up
            self._tally.failed(number, Role.CANARY, len(calls))
            return [None] * len(calls)
        try:
            async with asyncio.timeout(CANARY_PATIENCE_S):
                results = await self._canary.run(canary, calls)
        except TimeoutError:
            return [None] * len(calls)  # each had given up by itself: it waited for at least as long
        except Exception:
            if self._logged_plan != number:
                logger.exception("%s: the canary failed", self._appliance_id)
                self._logged_plan = number  # the counts say how often
            self._tally.failed(number, Role.CANARY, len(calls))
            return [None] * len(calls)
        self._figures.ran(Role.CANARY, canary.entry.model_version, results)
        self._trace(calls, results)
        # Whoever gave up meanwhile is counted as a failure already.
        oldest = time.perf_counter() - CANARY_PATIENCE_S
        in_time = [(call, result) for call, result in zip(calls, results, strict=True) if call[1] > oldest]
        self._tally.failed(number, Role.CANARY, sum(_is_bad(result) for _, result in in_time))
        self._count(number, Role.CANARY, in_time)
        for (request, _), result in in_time:
            if isinstance(result, Inference):
                self._compare(Answered(number, Role.CANARY, request, result, serving.stable))
        return [None if _is_bad(result) else result for result in results]

    def _count(self, plan: int, role: Role, ran: Iterable[tuple[Call, InferenceResult]]) -> None:
        now = time.perf_counter()
        for (_, arrived), result in ran:
            if isinstance(result, Inference):
                self._tally.ran(plan, role, Said(result.predicted_w, result.on_probability), now - arrived)

    def _trace(self, calls: list[Call], results: list[InferenceResult]) -> None:
        """The stages here of those windows whose request is traced."""
        now_ns = time.time_ns()
        for (request, _), result in zip(calls, results, strict=True):
            if request.trace is not None and isinstance(result, Inference):
                said: Attributes = {
                    "nilm.appliance": self._appliance_id,
                    "nilm.model_version": result.model_version,
                    "nilm.batch_windows": result.batch_size,
                }
                forward_began_ns = now_ns - int(result.forward_ms * NS_PER_MS)
                self._tracing.past(request.trace, "queue", forward_began_ns, result.queue_ms, said)
                self._tracing.past(request.trace, "forward", now_ns, result.forward_ms, said)

    def _compare(self, answered: Answered) -> None:
        if self._live > BUSY_WINDOWS:
            self._comparison.drop_waiting()
            self._tally.dropped(answered.plan, answered.role, 1)
        else:
            self._comparison.offer(answered)


def _is_bad(result: InferenceResult) -> bool:
    return isinstance(result, InferenceRefused) and result.reason is InferenceRefusal.BAD_OUTPUT
