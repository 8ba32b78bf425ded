"""Asks every ingress replica the same question and gathers their answers.

A deployment handle reaches one replica, whichever Serve picks; a cache that lives in each of them must be reached
in all. So each replica keeps one call open here, gets the questions through it, and answers by another call.
Owns who listens and what is still unanswered; knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LISTEN_S = 4.0
"""How long one call waits for a question; then the replica calls again, which also says that it lives."""
GONE_AFTER_S = LISTEN_S + 5.0
"""A replica that has not called for this long is no longer waited for."""
KEPT_QUESTIONS = 64
"""For replicas that are between two calls when a question comes."""


@dataclass(frozen=True, slots=True)
class Question:
    """`number` grows, also over a restart of the board, so that "after number n" always means later."""

    number: int
    asked: Any


@dataclass(frozen=True, slots=True)
class Heard:
    """What a replica hears. `missed` is true when questions may have passed it by since `after`."""

    questions: tuple[Question, ...]
    last_number: int
    missed: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """By replica; `silent` are those that are there and did not answer in time."""

    by_replica: dict[str, Any]
    silent: tuple[str, ...]


@dataclass
class _Open:
    """A question that is waiting for answers."""

    waiting_for: set[str]
    answers: dict[str, Any] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Noticeboard:
    """One per application. `clock` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first_number = self._last_number = time.time_ns()
        self._questions: deque[Question] = deque(maxlen=KEPT_QUESTIONS)
        self._open: dict[int, _Open] = {}
        self._last_heard_from: dict[str, float] = {}
        self._news = asyncio.Condition()

    async def listen(self, replica: str, after: int | None, wait_s: float = LISTEN_S) -> Heard:
        """The questions after number `after` (None: from now on), as soon as there are any, or none after `wait_s`."""
        self._last_heard_from[replica] = self._clock()
        if after is None:
            return Heard((), self._last_number, missed=False)
        oldest_known = self._questions[0].number - 1 if len(self._questions) == KEPT_QUESTIONS else self._first_number
        # A number from ahead is of an earlier board, whose clock was ahead.
        missed = after < oldest_known or after > self._last_number
        try:
            async with asyncio.timeout(wait_s), self._news:
                await self._news.wait_for(lambda: missed or self._last_number != after)
        except TimeoutError:
            pass  # nothing was asked
        self._last_heard_from[replica] = self._clock()
        return Heard(tuple(q for q in self._questions if q.number > after), self._last_number, missed)

    def answer(self, replica: str, number: int, said: Any) -> None:
        """Takes one replica's answer; one that comes too late, or was not asked for, is dropped."""
        waiting = self._open.get(number)
        if waiting is None or replica not in waiting.waiting_for:
            return
        waiting.answers[replica] = said
        if waiting.answers.keys() >= waiting.waiting_for:
            waiting.done.set()

    async def ask(self, asked: Any, wait_s: float) -> Answers:
        """Puts a question to every replica that listens and waits for their answers, `wait_s` at most."""
        now = self._clock()
        self._last_heard_from = {r: at for r, at in self._last_heard_from.items() if now - at <= GONE_AFTER_S}
        waiting = _Open(set(self._last_heard_from))
        self._last_number += 1
        number = self._last_number
        self._open[number] = waiting
        try:
            async with self._news:
                self._questions.append(Question(number, asked))
                self._news.notify_all()
            if waiting.waiting_for:
                async with asyncio.timeout(wait_s):
                    await waiting.done.wait()
        except TimeoutError:
            pass  # the answer names who was silent
        finally:
            del self._open[number]
        silent = sorted(waiting.waiting_for - waiting.answers.keys())
        return Answers(dict(waiting.answers), tuple(silent))
