"""What a training run leaves in its folder while it runs: a CSV line for each step, and a checkpoint to go on from."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
from pathlib import Path

import torch

from models.files import write_atomically
from models.training.loop import Recipe, StepReport, TrainingState

CHECKPOINT_STEPS = 50
"""A kill costs at most these steps, some fifteen seconds on one core."""
LOG_NAME = "log.csv"
CHECKPOINT_NAME = "checkpoint.pt"


class CheckpointError(Exception):
    """The folder holds a run that cannot be continued; the message is one sentence for the user."""


class TrainingLog:
    """`log.csv` and `checkpoint.pt` of one run in `folder`.

    `identity` is whatever else decides the weights (recipe, homes): a checkpoint of another identity is refused.
    """

    def __init__(self, folder: Path, recipe: Recipe, identity: dict[str, object]) -> None:
        self._folder = folder
        self._steps = recipe.steps
        self._identity = json.dumps({**dataclasses.asdict(recipe), **identity}, sort_keys=True, default=list)
        self._rows: list[list[str]] = []

    @property
    def checkpoint(self) -> Path:
        return self._folder / CHECKPOINT_NAME

    def resume(self, state: TrainingState, device: str) -> None:
        """Puts `state` where the last checkpoint was; a new run if there is none.

        Raises `CheckpointError` for a damaged checkpoint and for one of other data or another recipe.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            try:
                saved = torch.load(self.checkpoint, map_location=device, weights_only=True)
                identity = saved["identity"]
            except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
                raise CheckpointError(f"{self.checkpoint} cannot be read; give --restart to begin again") from error
            if identity != self._identity:
                raise CheckpointError(
                    f"{self._folder} holds an unfinished run of another recipe or other recordings; "
                    "give another folder, or --restart to begin again"
                )
            saved["torch_random"] = saved["torch_random"].cpu()
            state.load_state_dict(saved)
        self._rows = self._kept_rows(state.step)
        self._write_rows()

    def record(self, report: StepReport, state: TrainingState) -> None:
        """One step more; every `CHECKPOINT_STEPS` it is made durable."""
        self._rows.append([_figure(value) for value in dataclasses.astuple(report)])
        if report.step % CHECKPOINT_STEPS == 0 or report.step == self._steps:
            self._write_rows()
            buffer = io.BytesIO()
            torch.save({"identity": self._identity, **state.state_dict()}, buffer)
            write_atomically(self.checkpoint, buffer.getvalue())

    def _kept_rows(self, step: int) -> list[list[str]]:
        path = self._folder / LOG_NAME
        if step == 0 or not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        return [row for row in rows if row and int(row[0]) <= step]

    def _write_rows(self) -> None:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(StepReport)])
        writer.writerows(self._rows)
        write_atomically(self._folder / LOG_NAME, buffer.getvalue().encode())


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
