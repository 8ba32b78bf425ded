"""A registry as it was before golden outputs and units existed: CNNTransformer, window 1000, random weights."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from models.architectures import build
from models.loader import golden_arrays, load_verified
from models.registry import Registry

LEGACY_PARAMS = {"input_channels": 1, "d_model": 64, "n_heads": 4, "n_layers": 2}


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Random weights and windows are the same in every run, whichever tests ran before in the process."""
    torch.manual_seed(0)


@dataclass
class RegistryFolder:
    """A registry.json in `root` and the weights it names; `entry` may be edited, then `write` again."""

    root: Path
    entry: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.root / "registry.json"

    @property
    def artifact(self) -> Path:
        return self.root / self.entry["artifact_path"]

    def write(self) -> Path:
        self.path.write_text(json.dumps({"models": [self.entry]}), encoding="utf-8")
        return self.path

    def rehash(self) -> None:
        """The registry agrees with whatever the file now holds, so that the next check is the one that must refuse."""
        self.entry["artifact_sha256"] = hashlib.sha256(self.artifact.read_bytes()).hexdigest()
        self.write()


def _write_legacy(root: Path) -> RegistryFolder:
    torch.manual_seed(7)
    network = build("CNNTransformer", LEGACY_PARAMS, 1000)
    relative = "artifacts/kettle-cnnt/0.1.0/model.safetensors"
    (root / relative).parent.mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), root / relative)
    folder = RegistryFolder(
        root=root,
        entry={
            "model_id": "kettle-cnnt",
            "model_version": "0.1.0",
            "appliance_id": "kettle",
            "architecture": "CNNTransformer",
            "architecture_params": dict(LEGACY_PARAMS),
            "artifact_path": relative,
            "artifact_sha256": "",
            "input_window_size": 1000,
            "preprocessing": {"type": "standard", "mean": 522.0, "std": 814.0},
            "is_active": True,
        },
    )
    folder.rehash()
    return folder


@pytest.fixture
def legacy(tmp_path: Path) -> RegistryFolder:
    return _write_legacy(tmp_path)


@pytest.fixture(scope="session")
def published_once(tmp_path_factory: pytest.TempPathFactory) -> RegistryFolder:
    """As `legacy`, with golden outputs. Read only: `published` is a copy for one test."""
    folder = _write_legacy(tmp_path_factory.mktemp("published"))
    registry = Registry.load(folder.path)
    windows_kw = np.random.default_rng(3).uniform(0.1, 3.0, (2, 1000)).astype(np.float32)
    outputs = golden_arrays(load_verified(registry.entries[0], registry.root).predict(windows_kw))
    golden = folder.artifact.with_name("golden.npz")
    np.savez(golden, windows_kw=windows_kw, **outputs)  # type: ignore[arg-type]
    folder.entry["golden_path"] = str(golden.relative_to(folder.root))
    folder.write()
    return folder


@pytest.fixture
def published(published_once: RegistryFolder, tmp_path: Path) -> RegistryFolder:
    root = tmp_path / "published"
    shutil.copytree(published_once.root, root)
    return RegistryFolder(root, copy.deepcopy(published_once.entry))


@pytest.fixture
def edited_weights(legacy: RegistryFolder) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], None]:
    """Changes the stored weights and rehashes them."""

    def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        weights = safetensors.torch.load_file(legacy.artifact)
        change(weights)
        safetensors.torch.save_file(weights, legacy.artifact)
        legacy.rehash()

    return edit
