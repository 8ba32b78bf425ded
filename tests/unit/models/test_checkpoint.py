"""A killed training goes on where it was and ends with the same weights; another run's checkpoint is refused."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch

from models.appliances import appliance
from models.architectures import SequenceModel
from models.training import checkpoint
from models.training.checkpoint import CheckpointError, TrainingLog
from models.training.loop import Recipe, StepReport, train
from models.training.sampling import BatchSampler
from tests.unit.models.synthetic import synthetic_home

WINDOW = 64
RECIPE = Recipe(seed=5, steps=9, batch_size=8, window=WINDOW, architecture_params=(("channels", (8, 12)),))
KETTLE = appliance("kettle")
HOMES = (synthetic_home(1), synthetic_home(2))


class Killed(Exception):
    """Stands for the process ending between two steps."""


@pytest.fixture(autouse=True)
def _short_period(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_STEPS", 2)


def run(log: TrainingLog | None, killed_after: int | None = None, recipe: Recipe = RECIPE) -> SequenceModel:
    def on_step(report: StepReport) -> None:
        if report.step == killed_after:
            raise Killed

    return train(BatchSampler(HOMES, KETTLE, WINDOW, recipe.seed), recipe, "cpu", on_step, log)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in weights)


def steps_logged(folder) -> list[int]:
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("killed_after", [1, 4, 5, 8])
def test_killed_and_resumed_gives_the_same_weights(tmp_path, killed_after):
    whole = run(None)
    with pytest.raises(Killed):
        run(TrainingLog(tmp_path, RECIPE, {}), killed_after)
    resumed_at = []

    def on_step(report: StepReport) -> None:
        resumed_at.append(report.step)

    torch.manual_seed(999)
    resumed = train(
        BatchSampler(HOMES, KETTLE, WINDOW, RECIPE.seed), RECIPE, "cpu", on_step, TrainingLog(tmp_path, RECIPE, {})
    )
    assert same(whole, resumed)
    # From the last checkpoint, not from the start.
    assert resumed_at[0] == killed_after // 2 * 2 + 1
    assert steps_logged(tmp_path) == list(range(1, RECIPE.steps + 1))


@pytest.mark.parametrize(
    ("recipe", "identity"),
    [(dataclasses.replace(RECIPE, seed=6), {}), (dataclasses.replace(RECIPE, steps=10), {}), (RECIPE, {"homes": 1})],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, recipe, identity):
    with pytest.raises(Killed):
        run(TrainingLog(tmp_path, RECIPE, {}), 4)
    with pytest.raises(CheckpointError, match="another recipe or other recordings"):
        run(TrainingLog(tmp_path, recipe, identity), recipe=recipe)


def test_a_damaged_checkpoint_is_refused_and_never_run(tmp_path):
    with pytest.raises(Killed):
        run(TrainingLog(tmp_path, RECIPE, {}), 4)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"cos\nsystem\n(S'true'\ntR."):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            run(TrainingLog(tmp_path, RECIPE, {}))
