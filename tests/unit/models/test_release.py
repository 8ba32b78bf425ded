"""From a run to a version: all of it or nothing, and every reason why one may not be active, caused on purpose."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from models import release
from models.card import SECTIONS
from models.loader import GoldenCheck, load_verified
from models.registry import Registry, RegistryEntry
from models.release import ReleaseRefused, add, verify
from tests.unit.models.run_folders import a_test, edit_registry, make_run, report, snapshot


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "good"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def good_release(good_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release") / "models"
    add(good_run, root, "1.0.0", active=True)
    return root


@pytest.fixture
def root(good_release: Path, tmp_path: Path) -> Path:
    """A registry with one good, active version, to be broken."""
    shutil.copytree(good_release, tmp_path / "models")
    return tmp_path / "models"


FOLDER = "artifacts/kettle-tpunet/1.0.0"


def reasons(root: Path) -> list[str]:
    registry = Registry.load(root / "registry.json")
    return verify(registry.entries[0], root)


def the_only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_what_was_added_loads_and_is_complete(root: Path, good_run: Path) -> None:
    registry = Registry.load(root / "registry.json")
    entry = registry.active("kettle")
    assert entry.model_version == "1.0.0"
    assert load_verified(entry, root).golden is GoldenCheck.PASSED
    assert sorted(path.name for path in (root / FOLDER).iterdir()) == [
        "card.md",
        "example-day.png",
        "golden.npz",
        "model.safetensors",
        "reliability.png",
    ]
    for name in ("model.safetensors", "golden.npz", "reliability.png", "example-day.png"):
        assert (root / FOLDER / name).read_bytes() == (good_run / name).read_bytes()
    assert set(snapshot(root)) == {"registry.json", *(f"{FOLDER}/{path.name}" for path in (root / FOLDER).iterdir())}
    # Whoever serves them need not be whoever added them.
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in root.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in root.rglob("*") if path.is_dir())
    assert reasons(root) == []


def test_a_version_never_changes(root: Path, tmp_path: Path) -> None:
    before = snapshot(root)
    make_run(tmp_path / "other", seed=6)
    with pytest.raises(ReleaseRefused, match=r"kettle already has a version 1\.0\.0"):
        add(tmp_path / "other", root, "1.0.0")
    assert snapshot(root) == before


def test_a_version_is_unique_over_the_models_of_an_appliance(root: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "other", seed=6)
    edit_registry(tmp_path / "other" / "registry.json", lambda row: row.update(model_id="kettle-other"))
    with pytest.raises(ReleaseRefused, match=r"kettle already has a version 1\.0\.0"):
        add(tmp_path / "other", root, "1.0.0")
    add(tmp_path / "other", root, "1.0.1")
    assert (root / "artifacts/kettle-other/1.0.1/card.md").is_file()


def test_a_new_active_version_replaces_the_active_one_of_its_appliance_only(root: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "kettle", seed=6)
    make_run(tmp_path / "microwave", seed=7, appliance_id="microwave")
    add(tmp_path / "microwave", root, "1.0.0", active=True)
    add(tmp_path / "kettle", root, "1.1.0")
    assert Registry.load(root / "registry.json").active("kettle").model_version == "1.0.0"
    add(tmp_path / "kettle", root, "1.2.0", active=True)
    registry = Registry.load(root / "registry.json")
    assert [(one.appliance_id, one.model_version, one.is_active) for one in registry.entries] == [
        ("kettle", "1.0.0", False),
        ("kettle", "1.1.0", False),
        ("kettle", "1.2.0", True),
        ("microwave", "1.0.0", True),
    ]
    # A card does not depend on which version is active: the old ones still verify.
    assert all(verify(entry, root) == [] for entry in registry.entries)


@pytest.mark.parametrize("version", ["../1.0.0", "1/0", "", ".hidden", "v 1", "x" * 65])
def test_a_version_that_is_no_name_is_refused_before_anything_is_written(
    root: Path, good_run: Path, version: str
) -> None:
    before = snapshot(root.parent)
    with pytest.raises(ReleaseRefused, match="cannot be registered"):
        add(good_run, root, version)
    assert snapshot(root.parent) == before


def failing(_source: object, _target: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_moved_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", seed=6)
    before = snapshot(root)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            failing(source, target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ReleaseRefused, match="No space left"):
        add(tmp_path / "run", root, "1.1.0", active=True)
    assert snapshot(root) == before
    assert not (root / "artifacts/kettle-tpunet/1.1.0").exists()
    assert not list(root.glob(".*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_registry_that_cannot_be_written_takes_the_folder_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    make_run(tmp_path / "run", seed=6)
    before = snapshot(root)
    real = release.write_atomically

    def write(path: Path, content: bytes) -> None:
        if path.name == "registry.json":
            # Written last: everything it points to is in its place.
            assert (root / "artifacts/kettle-tpunet/1.1.0/card.md").is_file()
            raise error
        real(path, content)

    monkeypatch.setattr(release, "write_atomically", write)
    with pytest.raises((ReleaseRefused, KeyboardInterrupt)):
        add(tmp_path / "run", root, "1.1.0", active=True)
    assert snapshot(root) == before
    assert not (root / "artifacts/kettle-tpunet/1.1.0").exists()
    assert not list(root.glob(".*"))


@pytest.mark.parametrize("registry_fails", [True, False])
def test_a_refusal_leaves_no_empty_folders(
    tmp_path: Path, good_run: Path, monkeypatch: pytest.MonkeyPatch, registry_fails: bool
) -> None:
    """The first version of a registry that does not exist yet."""
    real = release.write_atomically

    def write(path: Path, content: bytes) -> None:
        if (path.name == "registry.json") == registry_fails:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(release, "write_atomically", write)
    with pytest.raises(ReleaseRefused, match="No space left"):
        add(good_run, tmp_path / "deep" / "models", "1.0.0")
    assert list(tmp_path.iterdir()) == []
    # A folder that was there is not ours to take away, even an empty one.
    (tmp_path / "mine").mkdir()
    with pytest.raises(ReleaseRefused, match="No space left"):
        add(good_run, tmp_path / "mine", "1.0.0")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_two_adds_at_once_are_both_registered(root: Path, good_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one starts when the first has read the registry and has not written it yet."""
    real, threads = release.card, []

    def second() -> None:
        add(good_run, root, "1.2.0")

    def slow_card(entry: RegistryEntry) -> str:
        if not threads:
            threads.append(threading.Thread(target=second))
            threads[0].start()
            # Time enough to read the registry, were it let.
            threads[0].join(1.0)
        return real(entry)

    monkeypatch.setattr(release, "card", slow_card)
    add(good_run, root, "1.1.0")
    threads[0].join(60.0)
    assert [one.model_version for one in Registry.load(root / "registry.json").entries] == ["1.0.0", "1.1.0", "1.2.0"]


def test_an_unregistered_folder_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", seed=6)
    (root / "artifacts/kettle-tpunet/1.1.0").mkdir()
    with pytest.raises(ReleaseRefused, match=r"1\.1\.0 exists but is not registered"):
        add(tmp_path / "run", root, "1.1.0")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda figures: figures.pop(key)


@pytest.mark.parametrize("key", ["answers", "tests", "validation_data", "on_threshold_w", "parameters", "recipe"])
def test_a_run_without_all_figures_is_not_added_at_all(tmp_path: Path, key: str) -> None:
    make_run(tmp_path / "run", without(key))
    with pytest.raises(ReleaseRefused, match=f"no card can be written .*'{key}' is a required property"):
        add(tmp_path / "run", tmp_path / "models", "1.0.0")
    assert not (tmp_path / "models").exists()


def uncountable_level(figures: dict[str, Any]) -> None:
    figures["tests"][0]["final"]["coverage"]["most"] = 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["recipe"].update(seeds=[]), "metrics/recipe/seeds"),
        (lambda m: m["recipe"].update(seeds=5), "metrics/recipe/seeds"),
        (uncountable_level, "metrics/tests/0/final/coverage"),
        # Days are compared as text, so another way to write them would hide an overlap.
        (lambda m: m["tests"][1].update({"from": "2.9.2014"}), "metrics/tests/1/from"),
        (lambda m: m["validation_data"][0].update(to="2014-12-01 00:00"), "metrics/validation_data/0/to"),
    ],
)
def test_figures_that_no_card_can_be_written_from_are_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    make_run(tmp_path / "run", change)
    with pytest.raises(ReleaseRefused, match=f"no card can be written .*{message}"):
        add(tmp_path / "run", tmp_path / "models", "1.0.0")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "registry.json").unlink(), "registry.json: cannot be read"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors: No such file"),
        (lambda run: (run / "golden.npz").unlink(), "golden.npz: No such file"),
        (lambda run: (run / "example-day.png").unlink(), "example-day.png: No such file"),
        (lambda run: flip_a_byte(run / "model.safetensors"), "sha256_mismatch"),
        (lambda run: edit_registry(run / "registry.json", lambda row: row.update(golden_path=None)), "no golden"),
    ],
)
def test_a_damaged_run_is_not_added(
    good_run: Path, tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    run = shutil.copytree(good_run, tmp_path / "run")
    break_it(run)
    with pytest.raises(ReleaseRefused, match=message):
        add(run, tmp_path / "models", "1.0.0")
    assert not (tmp_path / "models").exists()


def test_a_registry_of_several_is_no_run(root: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", seed=6)
    add(tmp_path / "run", root, "1.1.0")
    with pytest.raises(ReleaseRefused, match="2 entries, not one"):
        add(root, tmp_path / "models", "1.0.0")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rehash(root: Path) -> None:
    digest = hashlib.sha256((root / FOLDER / "model.safetensors").read_bytes()).hexdigest()
    edit_registry(root / "registry.json", lambda row: row.update(artifact_sha256=digest))


def weights_become_nan(root: Path) -> None:
    path = root / FOLDER / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    next(tensor for name, tensor in weights.items() if name.endswith("weight")).fill_(float("nan"))
    safetensors.torch.save_file(weights, path)
    rehash(root)
    write_the_card_again(root)


def golden_says_something_else(root: Path) -> None:
    path = root / FOLDER / "golden.npz"
    with np.load(path) as golden:
        arrays = dict(golden)
    arrays["final_predicted_w"] = arrays["final_predicted_w"] + 5.0
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def write_the_card_again(root: Path) -> None:
    """So that the card is not the reason."""
    entry = Registry.load(root / "registry.json").entries[0]
    (root / str(entry.card_path)).write_text(release.card(entry))


BROKEN_FILES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda root: flip_a_byte(root / FOLDER / "model.safetensors"), "does not load: sha256_mismatch"),
    (lambda root: (root / FOLDER / "model.safetensors").unlink(), "does not load: artifact_missing"),
    (weights_become_nan, "does not load: weights_not_finite"),
    (golden_says_something_else, "does not load: golden_mismatch"),
    (lambda root: (root / FOLDER / "golden.npz").unlink(), "does not load: golden_missing"),
    (
        lambda root: edit_registry(root / "registry.json", lambda row: row.update(golden_path=None)),
        "no golden outputs",
    ),
    (lambda root: (root / FOLDER / "example-day.png").unlink(), "picture example-day.png is missing"),
    (lambda root: (root / FOLDER / "reliability.png").write_bytes(b""), "picture reliability.png is missing"),
    (lambda root: (root / FOLDER / "card.md").unlink(), "model card is missing"),
    (lambda root: edit_registry(root / "registry.json", lambda row: row.update(card_path=None)), "card is missing"),
    (lambda root: (root / FOLDER / "card.md").write_bytes(b"\xff"), "model card cannot be read"),
]


@pytest.mark.parametrize(("break_it", "reason"), BROKEN_FILES)
def test_a_broken_file_is_a_reason(root: Path, break_it: Callable[[Path], Any], reason: str) -> None:
    break_it(root)
    assert reason in the_only(reasons(root))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_card_without_a_section_is_a_reason(root: Path, title: str) -> None:
    path = root / FOLDER / "card.md"
    before, _, after = path.read_text().partition(f"\n## {title}\n")
    _, mark, rest = after.partition("\n## ")
    path.write_text(before + mark + rest)
    found = reasons(root)
    assert f"Its model card has no section {title!r}." in found
    assert any("differs from the registry at line" in reason for reason in found)


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("| F1 of the state | 0.938 |", "| F1 of the state | 0.988 |"),
        ("- billing, tenant settlement", "- tenant settlement"),
        ("# kettle-tpunet 1.0.0", "# kettle-tpunet 1.0.1"),
    ],
)
def test_a_card_edited_by_hand_is_a_reason(root: Path, typed: str, instead: str) -> None:
    path = root / FOLDER / "card.md"
    assert typed in path.read_text()
    path.write_text(path.read_text().replace(typed, instead))
    assert "differs from the registry at line" in the_only(reasons(root))


def test_figures_edited_in_the_registry_are_a_reason(root: Path) -> None:
    edit_registry(root / "registry.json", lambda row: row["metrics"]["tests"][0]["final"].update(f1=0.99, mae_w=1.0))
    assert "differs from the registry at line" in the_only(reasons(root))


def the_unseen(figures: dict[str, Any]) -> dict[str, Any]:
    test: dict[str, Any] = figures["tests"][0]
    return test


BAD_FIGURES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    # The stored verdict says otherwise, and is not believed.
    (lambda m: the_unseen(m)["final"].update(f1=0.0, beats_always_off=True), "finds nothing: F1 0"),
    (lambda m: the_unseen(m)["final"].update(mae_w=25.1, beats_always_off=True), "does not beat always-off"),
    (lambda m: the_unseen(m)["final"].update(mae_w=25.0), "does not beat always-off"),
    (lambda m: m["tests"].pop(0), "no test on a home it never saw"),
    (lambda m: the_unseen(m).update(kind="held_out_month"), "no test on a home it never saw"),
    (lambda m: the_unseen(m).update(home="REFIT House 2"), "REFIT House 2 is called unseen"),
    (lambda m: the_unseen(m).update(home="refit  house 2 "), "is called unseen"),
    (lambda m: m["validation_data"][0].update(home="UK-DALE House 2"), "UK-DALE House 2 is called unseen"),
    (lambda m: m["tests"][1].update({"from": "2014-09-30"}), "overlaps what the model learnt from"),
    (lambda m: m["tests"][1].update({"from": "2014-12-01"}), "overlaps what the model learnt from"),
    (lambda m: the_unseen(m).update(attribution=" "), "UK-DALE House 2 has no attribution"),
    (
        lambda m: m["tests"].append(a_test("unseen_home", "REFIT House 20", report(0.5, 30.0), report(0.5, 3.0))),
        "On REFIT House 20, which it never saw, its final answer does not beat always-off",
    ),
]


@pytest.mark.parametrize(("change", "reason"), BAD_FIGURES)
def test_figures_that_are_not_good_enough_may_be_registered_but_not_active(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    make_run(tmp_path / "run", change)
    root = tmp_path / "models"
    with pytest.raises(ReleaseRefused, match=f"may not be active, so it was not added: .*{reason}"):
        add(tmp_path / "run", root, "1.0.0", active=True)
    assert not root.exists()
    entry = add(tmp_path / "run", root, "1.0.0")
    assert reason in the_only(verify(entry, root))


def all_fields(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(part, dict):
        return []
    return [found for key, value in part.items() for found in ((*path, key), *all_fields(value, (*path, key)))]


def paths_of_a_test() -> list[tuple[Any, ...]]:
    scores = report(0.9, 5.0)
    # The verdict is never read.
    return [path for path in all_fields(scores) if path != ("beats_always_off",)]


@pytest.mark.parametrize("path", paths_of_a_test(), ids="/".join)
@pytest.mark.parametrize("answer", ["final", "provisional"])
def test_every_figure_of_both_answers_is_required(good_release: Path, answer: str, path: tuple[str, ...]) -> None:
    entry = Registry.load(good_release / "registry.json").entries[0]
    part = entry.metrics["tests"][0][answer]
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    assert f"metrics/tests/0/{answer}" in the_only(verify(entry, good_release))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["metrics"]["answers"]["final"].update(sample_index=31),
        lambda row: row.update(output_sample_index=31),
    ],
)
def test_figures_of_another_sample_are_a_reason(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_registry(root / "registry.json", change)
    assert any("the figures are of sample" in reason for reason in reasons(root))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(training_data=[]), "names no home it learnt from"),
        (
            lambda row: row["training_data"][0].update(attribution=" ; by way of a collection"),
            "The recording of REFIT House 2 has no attribution",
        ),
    ],
)
def test_sources_without_a_name_are_a_reason(root: Path, change: Callable[[dict[str, Any]], Any], reason: str) -> None:
    edit_registry(root / "registry.json", change)
    write_the_card_again(root)
    assert reason in the_only(reasons(root))


def test_a_weak_provisional_answer_is_no_reason(tmp_path: Path) -> None:
    def weak(figures: dict[str, Any]) -> None:
        figures["tests"][0]["provisional"].update(f1=0.0, mae_w=30.0)

    make_run(tmp_path / "run", weak)
    entry = add(tmp_path / "run", tmp_path / "models", "1.0.0", active=True)
    card = (tmp_path / "models" / str(entry.card_path)).read_text()
    assert "On UK-DALE House 2 its provisional answer does not beat always-off (MAE 30 W" in card


def test_an_old_entry_without_such_figures_is_refused_in_sentences(root: Path) -> None:
    edit_registry(root / "registry.json", lambda row: row.update(metrics={}))
    found = reasons(root)
    assert found
    assert all(reason.startswith("metrics/: ") and reason.endswith("is a required property.") for reason in found)


def test_releases_need_no_tools() -> None:
    """As the interpreter sees it: pandas and matplotlib are an extra."""
    import subprocess
    import sys

    code = "import sys, models.release; print({'pandas', 'pyarrow', 'matplotlib', 'ray'} & set(sys.modules))"
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert reply.stdout.strip() == "set()"


def test_an_entry_keeps_what_the_run_said(good_run: Path, root: Path) -> None:
    run: RegistryEntry = Registry.load(good_run / "registry.json").entries[0]
    entry = Registry.load(root / "registry.json").entries[0]
    assert entry.metrics == run.metrics
    assert entry.training_data == run.training_data
    assert entry.artifact_sha256 == run.artifact_sha256
