"""Questions to every ingress replica, through the coordinator: a `Listener` in each answers, an `Asker` asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from deployments.noticeboard import LISTEN_S, Answers, Heard, Question
from serve_app.problems import Problem, Problems

RETRY_S = 1.0
CALL_MARGIN_S = 5.0
"""Beyond what a call may wait for a question: then it hangs, and what is asked meanwhile passes this replica by."""
ASK_TIMEOUT_S = 5.0
"""Above the coordinator's own wait for answers."""

Answering = Mapping[type, Callable[[Any], Awaitable[dict[str, Any]]]]
"""By the type of a question, what answers it."""


class Listener:
    """Answers for one replica. Calls `missed` whenever a question may have passed it by."""

    def __init__(
        self, coordinator: Any, replica: str, answering: Answering, missed: Callable[[], object], logger: logging.Logger
    ) -> None:
        self._coordinator = coordinator
        self._replica = replica
        self._answering = answering
        self._missed = missed
        self._logger = logger
        self._heard_until: int | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Listens until cancelled."""
        connected = True
        while True:
            try:
                await self.listen_once()
                connected = True
            except Exception as error:  # noqa: BLE001 - whatever a dead coordinator raises, listening goes on
                if connected:
                    fields = {"error": type(error).__name__}
                    self._logger.warning("the coordinator is away", extra={"fields": fields})
                connected = False
                # What is asked while nobody listens would be missed, so nothing of before may stay.
                self._heard_until = None
                self._missed()
                await asyncio.sleep(RETRY_S)

    async def listen_once(self) -> None:
        """One call: waits for questions, answers them."""
        async with asyncio.timeout(LISTEN_S + CALL_MARGIN_S):
            heard: Heard = await self._coordinator.listen.remote(self._replica, self._heard_until)
        if heard.missed or self._heard_until is None:
            self._missed()
        self._heard_until = heard.last_number
        for question in heard.questions:
            # Not waited for: while one is answered, the next is heard.
            task = asyncio.create_task(self._answer(question))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, question: Question) -> None:
        answer = self._answering.get(type(question.asked))
        try:
            # Of a newer version of us, which knows how to read an empty answer.
            said = {} if answer is None else await answer(question.asked)
            await self._coordinator.answer.remote(self._replica, question.number, said)
        except Exception as error:  # noqa: BLE001 - whoever asked is told that this replica is silent
            self._logger.warning("a question was not answered", extra={"fields": {"error": type(error).__name__}})


class Asker:
    """Asks every replica. `replica`: the one this stands in, which always listens."""

    def __init__(self, coordinator: Any, replica: str) -> None:
        self._coordinator = coordinator
        self._replica = replica

    async def ask(self, asked: object, wait_s: float) -> Answers:
        """Waits `wait_s` at most. Raises Problem 503 when the coordinator is away."""
        try:
            async with asyncio.timeout(min(wait_s, ASK_TIMEOUT_S)):
                answers: Answers = await self._coordinator.ask.remote(asked)
        except Exception as error:
            # Also TimeoutError, and whatever Ray raises for a replica that died.
            raise _unreachable() from error
        if self._replica not in {*answers.by_replica, *answers.silent}:
            # The coordinator has just started and does not know us again yet, so it may not know others either.
            raise _unreachable()
        return answers


def _unreachable() -> Problem:
    detail = "Not every ingress replica could be reached, and may not have done what was asked; ask again."
    return Problem(Problems.COORDINATION_UNAVAILABLE, detail, retry_after_s=2)
