"""Several runs as one model, and many runs as one file of figures. On invented recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner

from models.architectures import Ensemble
from models.loader import GoldenCheck, load_verified
from models.registry import Registry
from models.training.ensemble import combine
from models.training.run import RunError, RunRequest, run
from models.training.study import gather
from serve_app.cli.main import app
from tests.unit.models.test_train_to_evaluate import recording

STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    recording(folder / "REFIT_House2_1min.parquet", 1, 22_000)
    recording(folder / "REFIT_House20_1min.parquet", 2, 22_000)
    recording(folder / "UKDALE_House2_1min.parquet", 3, 1_000)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seeds 1 to 3 of a kettle, one microwave, one kettle that learnt from a single home."""
    folder = tmp_path_factory.mktemp("runs")
    requests = [
        RunRequest("kettle", data, folder / "one", seed=1, steps=STEPS),
        RunRequest("kettle", data, folder / "two", seed=2, steps=STEPS),
        RunRequest("kettle", data, folder / "three", seed=3, steps=STEPS),
        RunRequest("microwave", data, folder / "microwave", seed=3, steps=STEPS),
        RunRequest("kettle", data, folder / "alone", seed=3, steps=STEPS, training_homes=("refit-2",)),
    ]
    for request in requests:
        run(request)
    return [request.folder for request in requests]


def test_the_ensemble_is_the_median_of_its_runs_and_loads_like_any_model(data, runs, tmp_path):
    entry = combine(runs[:3], data, tmp_path / "all")
    assert (entry.architecture, entry.model_id) == ("Ensemble", "kettle-tpunet")
    assert entry.architecture_params["members"] == 3
    assert entry.metrics["recipe"]["seeds"] == [1, 2, 3]
    model = load_verified(entry, tmp_path / "all")
    assert model.golden is GoldenCheck.PASSED
    assert isinstance(model.network, Ensemble)
    together = safetensors.torch.load_file(tmp_path / "all" / entry.artifact_path)
    for number, folder in enumerate(runs[:3]):
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        of_member = {name: value for name, value in weights.items() if not name.startswith("readouts.")}
        assert of_member
        assert all((together[f"members.{number}.{name}"] == value).all() for name, value in of_member.items())
    single = load_verified(Registry.load(runs[0] / "registry.json").entries[0], runs[0])
    assert entry.metrics["parameters"] == 3 * single.entry.metrics["parameters"]
    windows_kw = np.full((1, 512), 0.3, dtype=np.float32)
    assert set(model.predict(windows_kw)) == set(single.predict(windows_kw))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((0, 1, 3), "another appliance"),
        ((0, 1, 4), "another appliance, architecture or fold"),
        ((0, 1, 1), "the same seed"),
        ((0, 1), "members must be 3, 5, 7 or 9, not 2"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(data, runs, tmp_path, chosen, message):
    with pytest.raises(RunError, match=message):
        combine([runs[i] for i in chosen], data, tmp_path / "no")
    assert not (tmp_path / "no" / "registry.json").exists()


def test_a_damaged_member_is_refused(data, runs, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(runs[1], damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="sha256_mismatch"):
        combine([runs[0], damaged, runs[2]], data, tmp_path / "no")


def test_a_study_gathers_runs_and_a_repeated_run_replaces_itself(runs, tmp_path):
    out = tmp_path / "study.json"
    assert gather(runs[:2], out) == 2
    result = CliRunner().invoke(app, ["study", str(runs[0].parent), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "holds 5 runs" in result.stdout
    document = json.loads(out.read_text(encoding="utf-8"))
    alone = [one for one in document["runs"] if one["training_homes"] == ["refit-2"]]
    assert [(one["appliance_id"], one["seed"], one["steps"], one["test_home"]) for one in alone] == [
        ("kettle", 3, STEPS, "uk-dale-2")
    ]
    assert all(one["ms_per_window"] > 0 and one["train_minutes"] >= 0 for one in document["runs"])
    assert "reliability" not in json.dumps(document)


def test_what_is_no_study_and_no_run_is_one_sentence(runs, tmp_path):
    with pytest.raises(RunError, match="no finished run"):
        gather([tmp_path], tmp_path / "study.json")
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(RunError, match="is not a study"):
        gather(runs[:1], tmp_path / "study.json")
    result = CliRunner().invoke(app, ["ensemble", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "e")])
    assert result.exit_code == 1
    assert "is not a finished run" in result.stderr
