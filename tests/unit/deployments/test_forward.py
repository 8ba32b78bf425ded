"""Forward: what a batch does with its windows, good and bad, final and provisional, and when nobody waits any more."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

from deployments.contracts import Inference, InferenceRefusal, InferenceRefused, InferenceResult, PowerInterval
from deployments.forward import Forward
from models.appliances import APPLIANCES
from models.attribution import Attribution
from models.loader import LoadedModel
from models.registry import Registry
from tests.unit.deployments.replica import (
    FINAL_INDEX,
    OFFSETS_W,
    PROVISIONAL_INDEX,
    WINDOW,
    Shelf,
    both,
    calls,
    output,
    request,
)

KETTLE_MAX_W = APPLIANCES["kettle"].max_power_w


@pytest.fixture
def model(shelf: Shelf) -> LoadedModel:
    from models.loader import load_verified

    registry = Registry.load(shelf.registry)
    return load_verified(registry.resolve("kettle", "1.0.0"), registry.root)


@pytest.fixture
def forward() -> Forward:
    return Forward("test")


def says(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, predict: Any) -> None:
    monkeypatch.setattr(model, "predict", predict)


async def run(forward: Forward, model: LoadedModel, *requests: Any) -> list[InferenceResult]:
    return await forward.run(model, calls(requests))


async def test_each_bad_window_of_a_batch_fails_alone(forward: Forward, model: LoadedModel) -> None:
    good = np.linspace(0, 3, WINDOW, dtype=np.float32)
    (alone,) = await run(forward, model, request(good))
    batch = [
        request(good),
        request(good[:-1]),
        request([*good[:-1], np.nan]),
        request([np.inf, *good[1:]]),
        request(good[None]),
        request(good, deadline_s=time.time() - 1),
        request([]),
        request(good),
    ]
    results = await run(forward, model, *batch)
    refusals = [r.reason if isinstance(r, InferenceRefused) else None for r in results]
    length, finite = InferenceRefusal.WINDOW_LENGTH, InferenceRefusal.NOT_FINITE
    assert refusals == [None, length, finite, finite, length, InferenceRefusal.DEADLINE, length, None]
    first, last = results[0], results[-1]
    assert isinstance(alone, Inference)
    assert isinstance(first, Inference)
    assert isinstance(last, Inference)
    assert first.predicted_w == last.predicted_w == pytest.approx(alone.predicted_w, abs=1e-2)
    assert (first.batch_size, first.aggregate_kw) == (2, good[FINAL_INDEX])
    assert isinstance(results[1], InferenceRefused)
    assert results[1].input_window_size == WINDOW


async def test_a_batch_of_bad_windows_runs_nothing(forward: Forward, model: LoadedModel) -> None:
    results = await run(forward, model, request([1.0]), request([]))
    assert all(isinstance(result, InferenceRefused) for result in results)


@pytest.mark.parametrize("field", ["predicted_w", "on_probability", "interval_w"])
async def test_an_output_that_is_not_finite_is_refused_alone(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    def predict(_: Any) -> Any:
        whole = output([5.0, 6.0, 7.0], [0.5, 0.5, 0.5])
        getattr(whole, field)[1] = np.nan
        return both(whole)

    says(model, monkeypatch, predict)
    results = await run(forward, model, request(), request(), request())
    assert [getattr(r, "reason", None) for r in results] == [None, InferenceRefusal.BAD_OUTPUT, None]


async def test_every_caller_of_a_batch_gets_its_own_answer(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(model, monkeypatch, lambda windows_kw: both(output(windows_kw[:, 0] * 1000, windows_kw[:, 0] / 4)))
    levels = [0.0, 1.0, 2.0, 3.0]
    windows = [request(np.full(WINDOW, level)) for level in levels]
    results = await run(forward, model, windows[0], request([]), *windows[1:])
    answers = [r for r in results if isinstance(r, Inference)]
    assert [r.predicted_w for r in answers] == [0.0, 1000.0, 2000.0, 3000.0]
    assert [r.on_probability for r in answers] == [0.0, 0.25, 0.5, 0.75]
    assert [r.intervals[1].high_w for r in answers] == [20.0, 1020.0, 2020.0, 3020.0]
    assert [r.aggregate_kw for r in answers] == levels
    assert isinstance(results[1], InferenceRefused)


async def test_windows_of_one_batch_ask_for_either_answer(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = []

    def predict(windows_kw: Any) -> Any:
        blocks.append(len(windows_kw))
        level = windows_kw[:, 0]
        return both(output(level * 1000, level / 4), output(level * 1000 + 1, level / 8, spread_w=50.0))

    says(model, monkeypatch, predict)
    asked = [Attribution.PROVISIONAL, Attribution.FINAL, Attribution.FINAL, Attribution.PROVISIONAL]
    # The refused window in between must not shift the answers behind it.
    windows = [request(np.full(WINDOW, level), which) for level, which in enumerate(asked)]
    results = await run(forward, model, windows[0], request([], Attribution.PROVISIONAL), *windows[1:])
    answers = [r for r in results if isinstance(r, Inference)]
    assert blocks == [4]
    assert [r.attribution for r in answers] == asked
    assert [r.predicted_w for r in answers] == [1.0, 1000.0, 2000.0, 3001.0]
    assert [r.on_probability for r in answers] == [0.0, 0.25, 0.5, 0.375]
    assert [r.output_sample_index for r in answers] == [PROVISIONAL_INDEX, FINAL_INDEX, FINAL_INDEX, PROVISIONAL_INDEX]
    assert answers[2].intervals == (PowerInterval(0.8, 1990.0, 2010.0), PowerInterval(0.9, 1980.0, 2020.0))
    assert answers[3].intervals == (PowerInterval(0.8, 2951.0, 3051.0), PowerInterval(0.9, 2901.0, 3101.0))


async def test_a_real_model_gives_its_two_answers_in_one_batch(forward: Forward, model: LoadedModel) -> None:
    window = np.linspace(0, 3, WINDOW, dtype=np.float32)
    expected = model.predict(np.stack([window, window]))
    results = await run(forward, model, request(window, Attribution.PROVISIONAL), request(window))
    for result, which in zip(results, (Attribution.PROVISIONAL, Attribution.FINAL), strict=True):
        assert isinstance(result, Inference)
        assert result.batch_size == 2
        assert result.predicted_w == expected[which].predicted_w[0]
        assert result.on_probability == expected[which].on_probability[0]
        assert result.aggregate_kw == window[result.output_sample_index]
        assert (result.model_version, result.artifact_sha256) == ("1.0.0", model.entry.artifact_sha256)
        for interval, (low_w, high_w) in zip(result.intervals, OFFSETS_W[which], strict=True):
            assert interval.low_w == pytest.approx(max(0.0, result.predicted_w + low_w), abs=1e-3)
            assert interval.high_w == pytest.approx(min(KETTLE_MAX_W, result.predicted_w + high_w), abs=1e-3)
        assert [interval.coverage for interval in result.intervals] == [0.8, 0.9]


async def test_the_time_in_the_queue_is_from_the_arrival_to_the_pass(forward: Forward, model: LoadedModel) -> None:
    (result,) = await forward.run(model, [(request(), time.perf_counter() - 1.5)])
    assert isinstance(result, Inference)
    assert result.queue_ms == pytest.approx(1500, rel=0.2)
    assert 0 < result.forward_ms < 1000


class Gate:
    """A pass that waits until it is let go."""

    def __init__(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.begun, self.open, self.passes = threading.Event(), threading.Event(), 0
        real = model.predict

        def predict(windows_kw: Any) -> Any:
            self.passes += 1
            self.begun.set()
            assert self.open.wait(10)
            if error is not None:
                raise error
            return real(windows_kw)

        monkeypatch.setattr(model, "predict", predict)

    async def started(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 5)


async def test_a_pass_blocks_no_other_work(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(model, monkeypatch)
    running = asyncio.create_task(run(forward, model, request()))
    await gate.started()
    assert forward.busy
    gate.open.set()
    (result,) = await running
    assert isinstance(result, Inference)
    assert not forward.busy


async def test_a_pass_that_nobody_waits_for_is_still_running(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(model, monkeypatch)
    given_up = asyncio.create_task(run(forward, model, request()))
    await gate.started()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert given_up.cancelled()
    assert forward.busy
    gate.open.set()
    (result,) = await asyncio.wait_for(run(forward, model, request()), 5)
    assert isinstance(result, Inference)
    assert (gate.passes, forward.busy) == (2, False)


async def test_what_a_model_raises_is_raised_and_the_next_batch_is_another_chance(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model, "predict", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await run(forward, model, request())
    assert not forward.busy
    assert isinstance((await run(forward, model, request()))[0], Inference)


async def test_a_pass_that_fails_when_nobody_waits_any_more_makes_no_noise(
    forward: Forward, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    gate = Gate(model, monkeypatch, ValueError("late"))
    given_up = asyncio.create_task(run(forward, model, request()))
    await gate.started()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    gate.open.set()
    async with asyncio.timeout(5):
        while forward.busy:  # noqa: ASYNC110 - the thread tells nobody
            await asyncio.sleep(0.002)
    forward._running = None
    gc.collect()
    await asyncio.sleep(0)
    assert noise == []
