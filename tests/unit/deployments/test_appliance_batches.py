"""ApplianceModel without Ray: what a batch does with its windows, good and bad, final and provisional."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from deployments.appliance import ApplianceModel
from deployments.contracts import Inference, InferenceRefusal, InferenceRefused, InferenceRequest, PowerInterval
from models.appliances import APPLIANCES
from models.attribution import Attribution
from models.loader import ModelOutput
from tests.unit.deployments.replica import (
    FINAL_INDEX,
    OFFSETS_W,
    PROVISIONAL_INDEX,
    WINDOW,
    deploy,
    request,
    run_batch,
)

KETTLE_MAX_W = APPLIANCES["kettle"].max_power_w


async def test_each_bad_window_of_a_batch_fails_alone(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    good = np.linspace(0, 3, WINDOW, dtype=np.float32)
    (alone,) = await run_batch(kettle, request(good))
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
    results = await run_batch(kettle, *batch)
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
    status = await kettle.status()
    assert (status.windows_total, status.batches_total, status.largest_batch) == (3, 2, 2)


async def test_a_batch_of_bad_windows_runs_nothing(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    results = await run_batch(kettle, request([1.0]), request([]))
    assert all(isinstance(result, InferenceRefused) for result in results)
    assert (await kettle.status()).batches_total == 0


def both(final: ModelOutput, provisional: ModelOutput | None = None) -> dict[Attribution, ModelOutput]:
    return {Attribution.FINAL: final, Attribution.PROVISIONAL: final if provisional is None else provisional}


def output(predicted_w: Any, on_probability: Any, spread_w: float = 10.0) -> ModelOutput:
    """Outputs with intervals of +-spread and +-twice that."""
    power = np.asarray(predicted_w, dtype=np.float32)
    spreads = spread_w * np.array([[-1, 1], [-2, 2]], dtype=np.float32)
    return ModelOutput(power, np.asarray(on_probability, dtype=np.float32), power[:, None, None] + spreads)


@pytest.mark.parametrize("field", ["predicted_w", "on_probability", "interval_w"])
async def test_an_output_that_is_not_finite_is_refused_alone(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None

    def predict(windows_kw: Any) -> dict[Attribution, ModelOutput]:
        whole = output([5.0, 6.0, 7.0], [0.5, 0.5, 0.5])
        getattr(whole, field)[1] = np.nan
        return both(whole)

    monkeypatch.setattr(kettle._serving, "predict", predict)
    results = await run_batch(kettle, request(), request(), request())
    assert [getattr(r, "reason", None) for r in results] == [None, InferenceRefusal.BAD_OUTPUT, None]


async def test_every_caller_of_a_batch_gets_its_own_answer(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None

    def predict(windows_kw: Any) -> dict[Attribution, ModelOutput]:
        return both(output(windows_kw[:, 0] * 1000, windows_kw[:, 0] / 4))

    monkeypatch.setattr(kettle._serving, "predict", predict)
    levels = [0.0, 1.0, 2.0, 3.0]
    windows = [request(np.full(WINDOW, level)) for level in levels]
    results = await run_batch(kettle, windows[0], request([]), *windows[1:])
    answers = [r for r in results if isinstance(r, Inference)]
    assert [r.predicted_w for r in answers] == [0.0, 1000.0, 2000.0, 3000.0]
    assert [r.on_probability for r in answers] == [0.0, 0.25, 0.5, 0.75]
    assert [r.intervals[1].high_w for r in answers] == [20.0, 1020.0, 2020.0, 3020.0]
    assert [r.aggregate_kw for r in answers] == levels
    assert isinstance(results[1], InferenceRefused)


async def test_windows_of_one_batch_ask_for_either_answer(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None
    blocks = []

    def predict(windows_kw: Any) -> dict[Attribution, ModelOutput]:
        blocks.append(len(windows_kw))
        level = windows_kw[:, 0]
        return both(output(level * 1000, level / 4), output(level * 1000 + 1, level / 8, spread_w=50.0))

    monkeypatch.setattr(kettle._serving, "predict", predict)
    asked = [Attribution.PROVISIONAL, Attribution.FINAL, Attribution.FINAL, Attribution.PROVISIONAL]
    # The refused window in between must not shift the answers behind it.
    windows = [request(np.full(WINDOW, level), which) for level, which in enumerate(asked)]
    results = await run_batch(kettle, windows[0], request([], Attribution.PROVISIONAL), *windows[1:])
    answers = [r for r in results if isinstance(r, Inference)]
    assert blocks == [4]
    assert [r.attribution for r in answers] == asked
    assert [r.predicted_w for r in answers] == [1.0, 1000.0, 2000.0, 3001.0]
    assert [r.on_probability for r in answers] == [0.0, 0.25, 0.5, 0.375]
    assert [r.output_sample_index for r in answers] == [PROVISIONAL_INDEX, FINAL_INDEX, FINAL_INDEX, PROVISIONAL_INDEX]
    assert answers[2].intervals == (PowerInterval(0.8, 1990.0, 2010.0), PowerInterval(0.9, 1980.0, 2020.0))
    assert answers[3].intervals == (PowerInterval(0.8, 2951.0, 3051.0), PowerInterval(0.9, 2901.0, 3101.0))


async def test_a_real_model_gives_its_two_answers_in_one_batch(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None
    window = np.linspace(0, 3, WINDOW, dtype=np.float32)
    expected = kettle._serving.predict(np.stack([window, window]))
    results = await run_batch(kettle, request(window, Attribution.PROVISIONAL), request(window))
    for result, which in zip(results, (Attribution.PROVISIONAL, Attribution.FINAL), strict=True):
        assert isinstance(result, Inference)
        assert result.batch_size == 2
        assert result.predicted_w == expected[which].predicted_w[0]
        assert result.on_probability == expected[which].on_probability[0]
        assert result.aggregate_kw == window[result.output_sample_index]
        for interval, (low_w, high_w) in zip(result.intervals, OFFSETS_W[which], strict=True):
            assert interval.low_w == pytest.approx(max(0.0, result.predicted_w + low_w), abs=1e-3)
            assert interval.high_w == pytest.approx(min(KETTLE_MAX_W, result.predicted_w + high_w), abs=1e-3)
        assert [interval.coverage for interval in result.intervals] == [0.8, 0.9]


def test_without_a_word_the_answer_is_final() -> None:
    assert InferenceRequest(np.zeros(WINDOW, dtype=np.float32), 0.0).attribution is Attribution.FINAL


async def test_without_a_model_every_call_of_a_batch_is_refused(kettle: ApplianceModel) -> None:
    results = await run_batch(kettle, request(), request())
    assert [r.reason for r in results if isinstance(r, InferenceRefused)] == [InferenceRefusal.NO_MODEL] * 2
