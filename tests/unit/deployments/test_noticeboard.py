"""Every listening replica hears every question once, and the asker learns who was silent."""

from __future__ import annotations

import asyncio

import pytest

from deployments.noticeboard import GONE_AFTER_S, KEPT_QUESTIONS, Noticeboard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def join(board: Noticeboard, *replicas: str) -> dict[str, int]:
    return {replica: (await board.listen(replica, None)).last_number for replica in replicas}


async def replica(board: Noticeboard, name: str, heard: list[object], after: int | None = None) -> None:
    """Listens and answers, as an ingress does, until cancelled."""
    while True:
        said = await board.listen(name, after, wait_s=0.5)
        after = said.last_number
        for question in said.questions:
            heard.append(question.asked)
            board.answer(name, question.number, f"{name}: {question.asked}")


async def test_every_replica_answers_every_question_once() -> None:
    board = Noticeboard()
    heard: dict[str, list[object]] = {"a": [], "b": []}
    tasks = [asyncio.create_task(replica(board, name, said)) for name, said in heard.items()]
    await asyncio.sleep(0.01)
    for asked in range(20):
        answers = await board.ask(asked, wait_s=2)
        assert answers.by_replica == {"a": f"a: {asked}", "b": f"b: {asked}"}
        assert answers.silent == ()
    assert heard == {"a": list(range(20)), "b": list(range(20))}
    for task in tasks:
        task.cancel()


async def test_questions_asked_at_once_do_not_mix() -> None:
    board = Noticeboard()
    tasks = [asyncio.create_task(replica(board, name, [])) for name in "abc"]
    await asyncio.sleep(0.01)
    many = await asyncio.gather(*(board.ask(asked, wait_s=2) for asked in range(30)))
    for asked, answers in enumerate(many):
        assert answers.by_replica == {name: f"{name}: {asked}" for name in "abc"}
    for task in tasks:
        task.cancel()


async def test_a_replica_between_two_calls_hears_it_at_the_next() -> None:
    board = Noticeboard()
    after = (await join(board, "a"))["a"]
    asking = asyncio.create_task(board.ask("x", wait_s=2))
    await asyncio.sleep(0.01)
    heard = await board.listen("a", after)
    assert [question.asked for question in heard.questions] == ["x"]
    assert not heard.missed
    board.answer("a", heard.questions[0].number, "done")
    assert (await asking).by_replica == {"a": "done"}
    # Heard is heard: the next call does not bring it again.
    assert (await board.listen("a", heard.last_number, wait_s=0.01)).questions == ()


async def test_a_silent_replica_is_named_and_the_others_answers_count() -> None:
    board = Noticeboard()
    await join(board, "dead")
    task = asyncio.create_task(replica(board, "alive", []))
    await asyncio.sleep(0.01)
    answers = await board.ask("x", wait_s=0.05)
    assert answers.by_replica == {"alive": "alive: x"}
    assert answers.silent == ("dead",)
    task.cancel()


async def test_a_replica_that_is_gone_is_not_waited_for() -> None:
    clock = Clock()
    board = Noticeboard(clock)
    await join(board, "gone")
    clock.now = GONE_AFTER_S + 1
    answers = await board.ask("x", wait_s=600)  # the test's own limit is below that
    assert (answers.by_replica, answers.silent) == ({}, ())


async def test_a_late_answer_and_a_strangers_are_dropped() -> None:
    board = Noticeboard()
    after = (await join(board, "a"))["a"]
    assert (await board.ask("x", wait_s=0.01)).silent == ("a",)
    number = (await board.listen("a", after)).questions[0].number
    board.answer("a", number, "late")
    board.answer("stranger", number, "hm")
    asking = asyncio.create_task(board.ask("y", wait_s=0.05))
    await asyncio.sleep(0.01)
    board.answer("stranger", number + 1, "hm")
    answers = await asking
    assert "hm" not in answers.by_replica.values()


async def test_one_that_missed_questions_is_told() -> None:
    board = Noticeboard()
    after = (await join(board, "slow"))["slow"]
    for asked in range(KEPT_QUESTIONS + 1):
        await board.ask(asked, wait_s=0)
    heard = await board.listen("slow", after)
    assert heard.missed
    assert len(heard.questions) == KEPT_QUESTIONS
    assert not (await board.listen("slow", heard.last_number, wait_s=0.01)).missed


async def test_a_new_board_knows_that_it_has_forgotten() -> None:
    """The coordinator died: what was asked of the old board may never have reached this replica."""
    old = Noticeboard()
    await old.ask("x", wait_s=0)
    after = (await join(old, "a"))["a"]
    await asyncio.sleep(0.001)
    assert (await Noticeboard().listen("a", after, wait_s=0.01)).missed


async def test_a_board_whose_clock_is_behind_knows_it_too() -> None:
    board = Noticeboard()
    after = (await join(board, "a"))["a"] + 10**12
    heard = await board.listen("a", after)
    assert heard.missed
    assert heard.last_number < after


async def test_a_cancelled_listener_leaves_the_board_whole() -> None:
    board = Noticeboard()
    after = (await join(board, "a"))["a"]
    listening = asyncio.create_task(board.listen("a", after))
    await asyncio.sleep(0.01)
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    task = asyncio.create_task(replica(board, "a", [], after))
    assert (await board.ask("x", wait_s=1)).by_replica == {"a": "a: x"}
    task.cancel()
