"""Runs a second version on windows that are answered already: shadows, and the stable version beside a canary.

Off the reply's path, on a thread of low priority, from a queue that is short and dropped from first. What it finds
goes into the tally; nothing of it is stored or answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from deployments.contracts import Inference, InferenceRequest
from deployments.rollout_contracts import Role
from deployments.tally import Said, Tally
from deployments.versions import in_background
from models.attribution import Attribution
from models.loader import LoadedModel, ModelOutput

QUEUE_WINDOWS = 128
"""Windows that may wait: more than that, and live traffic leaves no time for them."""
BATCH_WINDOWS = 16
"""One pass is short, so that a live window that arrives meanwhile shares the core with it for a moment only."""
PASS_S = 30.0
"""Of a pass that hangs, nothing is waited for any longer."""
STARVED_SHARE = 0.5
STARVED_S = 0.01
"""A pass whose thread was without a core for more than that share of its time, and that long: the machine has no time
to spare, wherever it is spent. The ingress and the proxy run out of it long before this process does."""
REST_S = 1.0
"""After such a pass nothing is compared for as long."""
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Answered:
    """A window, its answer, and the version that is to run it again.

    `role` is the one that is judged; `plan` the number of the plan under which it was answered.
    """

    plan: int
    role: Role
    request: InferenceRequest
    answer: Inference
    other: LoadedModel


class Comparison:
    """Of one replica."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._queue: deque[Answered] = deque()
        self._working: asyncio.Task[None] | None = None
        self._failing: set[str] = set()
        self._hung: LoadedModel | None = None
        self._rests_until = 0.0

    def offer(self, answered: Answered) -> None:
        """Takes the window, or drops it when too many wait or there is no time to spare."""
        full, resting = len(self._queue) >= QUEUE_WINDOWS, time.monotonic() < self._rests_until
        if full or resting or answered.other is self._hung:
            self._tally.dropped(answered.plan, answered.role, 1)
            return
        self._queue.append(answered)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    def drop_waiting(self) -> None:
        """Live windows need the core: whatever waits here goes first."""
        while self._queue:
            waiting = self._queue.popleft()
            self._tally.dropped(waiting.plan, waiting.role, 1)

    async def _work(self) -> None:
        while self._queue:
            first = self._queue[0]
            batch: list[Answered] = []
            while self._queue and len(batch) < BATCH_WINDOWS and self._queue[0].other is first.other:
                batch.append(self._queue.popleft())
            version = first.other.entry.model_version
            try:
                await self._compare(first.other, batch)
                self._failing.discard(version)
            except Exception:
                # A shadow may fail in any way; the next batch is another chance, and the counts say what happened.
                if version not in self._failing:  # said once: it may fail at every window for days
                    logger.exception("comparing with %s failed", version)
                self._failing.add(version)
                if first.role is Role.SHADOW:
                    self._tally.failed(first.plan, Role.SHADOW, len(batch))

    async def _compare(self, other: LoadedModel, batch: list[Answered]) -> None:
        windows = np.ascontiguousarray([one.request.window_kw for one in batch], dtype=np.float32)

        def predict() -> tuple[dict[Attribution, ModelOutput], float, float]:
            started, started_cpu = time.perf_counter(), time.thread_time()
            outputs = other.predict(windows)
            return outputs, time.perf_counter() - started, time.thread_time() - started_cpu

        try:
            async with asyncio.timeout(PASS_S):
                outputs, forward_s, core_s = await in_background(predict)
        except TimeoutError:
            # Its thread is lost, and another would be lost with the next batch.
            self._hung = other
            self.drop_waiting()
            raise
        if forward_s - core_s > max(STARVED_S, STARVED_SHARE * forward_s):
            self._rests_until = time.monotonic() + REST_S
            self.drop_waiting()
        for position, one in enumerate(batch):
            output = outputs[one.request.attribution]
            said = Said(float(output.predicted_w[position]), float(output.on_probability[position]))
            answer = Said(one.answer.predicted_w, one.answer.on_probability)
            shadow = one.role is Role.SHADOW
            if not np.isfinite(said).all():
                if shadow:
                    self._tally.failed(one.plan, Role.SHADOW, 1)
                continue
            if shadow:
                self._tally.ran(one.plan, Role.SHADOW, said, forward_s)
            self._tally.compared(one.plan, one.role, *((said, answer) if shadow else (answer, said)))
