"""`Registry`: defaults of old entries, and refusals that say where."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.attribution import Attribution
from models.loader import GoldenCheck, load_verified
from models.registry import Registry, RegistryError


def write(legacy, *entries) -> None:
    legacy.path.write_text(json.dumps({"models": list(entries)}), encoding="utf-8")


def test_defaults_of_a_legacy_entry(legacy):
    entry = Registry.load(legacy.path).active("kettle")
    assert (entry.sample_period_s, entry.output_sample_index, entry.input_unit) == (60.0, 999, "W")
    assert (entry.golden_path, entry.card_path, entry.metrics, entry.training_data) == (None, None, {}, ())
    assert (entry.max_power_w, entry.on_threshold_w) == (3100.0, 2000.0)
    assert entry.preprocessing.clip_w is None


def test_without_a_provisional_sample_both_answers_stand_for_the_one_there_is(legacy):
    entry = Registry.load(legacy.path).active("kettle")
    assert entry.sample_indices == {Attribution.FINAL: 999, Attribution.PROVISIONAL: 999}
    legacy.entry["output_sample_index"] = 500
    entry = Registry.load(legacy.write()).active("kettle")
    assert (entry.output_sample_index, entry.provisional_sample_index) == (500, 500)


def test_each_answer_has_its_sample(legacy):
    legacy.entry |= {"output_sample_index": 500, "provisional_sample_index": 0}
    entry = Registry.load(legacy.write()).active("kettle")
    assert entry.sample_indices == {Attribution.FINAL: 500, Attribution.PROVISIONAL: 0}


def test_a_bare_list_is_a_registry(legacy):
    legacy.path.write_text(json.dumps([legacy.entry]), encoding="utf-8")
    assert Registry.load(legacy.path).entries[0].model_id == "kettle-cnnt"


def test_the_packaged_registry_is_valid():
    registry = Registry.load()
    assert registry.root.name == "models"
    assert {entry.appliance_id for entry in registry.entries if entry.is_active} == {
        "kettle",
        "microwave",
        "dishwasher",
        "washing_machine",
    }
    # One mains window answers for one instant, whatever the appliance.
    shared = {
        (entry.input_window_size, entry.sample_period_s, *entry.sample_indices.values())
        for entry in registry.entries
        if entry.is_active
    }
    assert len(shared) == 1


@pytest.mark.parametrize("entry", Registry.load().entries, ids=lambda entry: entry.model_id)
def test_every_packaged_model_loads_and_repeats_its_golden_output(entry):
    root = Registry.load().root
    model = load_verified(entry, root)
    assert model.golden is GoldenCheck.PASSED
    with np.load(root / entry.golden_path) as golden:
        for attribution in Attribution:
            assert (golden[f"{attribution}_predicted_w"] > 0).any()
    card = (root / entry.card_path).read_text(encoding="utf-8")
    assert entry.artifact_sha256 in card


def test_resolve_names_what_exists(legacy):
    registry = Registry.load(legacy.path)
    assert registry.resolve("kettle", "0.1.0").model_id == "kettle-cnnt"
    with pytest.raises(RegistryError, match=r"versions are 0\.1\.0"):
        registry.resolve("kettle", "9.9.9")
    with pytest.raises(RegistryError, match="the registry has kettle"):
        registry.resolve("toaster", "0.1.0")


def test_active_needs_one(legacy):
    legacy.entry["is_active"] = False
    with pytest.raises(RegistryError, match="no active model"):
        Registry.load(legacy.write()).active("kettle")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"models": [], "models": []}', "'models' is given twice"),
        ('{"models": NaN}', "NaN is not JSON"),
        ('{"models": [1e999]}', "1e999 is not JSON"),
        ('{"models": ', "is not JSON"),
        ('{"modles": []}', "at /"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_not_strict_json_or_not_a_registry(tmp_path, text, message):
    path = tmp_path / "registry.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RegistryError, match=message):
        Registry.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(RegistryError, match="cannot be read"):
        Registry.load(tmp_path / "registry.json")


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ("artifact_path", "/etc/passwd", "/models/0/artifact_path"),
        ("artifact_path", "a/../../secret", "/models/0/artifact_path"),
        ("golden_path", "../golden.npz", "/models/0/golden_path"),
        ("card_path", "..", "/models/0/card_path"),
        ("artifact_sha256", "ab", "/models/0/artifact_sha256"),
        ("artifact_sha256", "A" * 64, "/models/0/artifact_sha256"),
        ("input_window_size", "1000", "/models/0/input_window_size"),
        ("input_window_size", True, "/models/0/input_window_size"),
        ("output_sample_index", 1000, "/models/0/output_sample_index"),
        ("provisional_sample_index", 1000, "/models/0/provisional_sample_index"),
        ("provisional_sample_index", -1, "/models/0/provisional_sample_index"),
        ("provisional_sample_index", 7.5, "/models/0/provisional_sample_index"),
        ("provisional_sample_index", None, "/models/0/provisional_sample_index"),
        ("appliance_id", "kettle\n", "/models/0/appliance_id"),
        ("preprocessing", {"type": "standard", "mean": 0, "std": 0}, "/models/0/preprocessing/std"),
        ("preprocessing", {"type": "minmax", "mean": 0, "std": 1}, "/models/0/preprocessing/type"),
        ("surprise", 1, "/models/0"),
    ],
)
def test_bad_fields_are_named_by_pointer(legacy, field, value, pointer):
    legacy.entry[field] = value
    with pytest.raises(RegistryError, match=f"at {pointer}: "):
        Registry.load(legacy.write())


def test_a_missing_field_is_named(legacy):
    del legacy.entry["artifact_sha256"]
    with pytest.raises(RegistryError, match="'artifact_sha256' is a required property"):
        Registry.load(legacy.write())


def test_one_version_once_and_one_active(legacy):
    write(legacy, legacy.entry, legacy.entry)
    with pytest.raises(RegistryError, match=r"version '0\.1\.0' twice"):
        Registry.load(legacy.path)
    write(legacy, legacy.entry, legacy.entry | {"model_version": "0.2.0"})
    with pytest.raises(RegistryError, match="two active versions"):
        Registry.load(legacy.path)
