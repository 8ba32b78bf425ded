"""Which engine runs a version's forward pass, and what must be known before it may be another one than torch.

Owns the meaning of `RegistryEntry.engine` and `engine_evidence`. Believes only the figures, never a verdict that was
stored beside them. Needs no torch: a process that only reads the registry reads this too.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from models.attribution import Attribution

if TYPE_CHECKING:
    from models.registry import RegistryEntry


class Engine(StrEnum):
    """What computes a network's outputs. The weights, and all that is done with the outputs, are the same."""

    TORCH = "torch"
    OPENVINO = "openvino"
    """On a CPU, with the extra `openvino`; a replica that has a GPU runs the version with torch."""


F1_MAY_DROP = 0.001
"""One to three minutes of a test home that change sides: outputs that differ in the sixth digit do that at most."""


def unproven(entry: RegistryEntry) -> str | None:
    """Why this version may not run on its engine, in a sentence; None when it may. With torch it always may."""
    if entry.engine is Engine.TORCH:
        return None
    evidence = entry.engine_evidence
    command = f"nilm models engine {entry.model_id} {entry.model_version} {entry.engine}"
    if evidence is None:
        return f"nobody has measured it with {entry.engine}; do it with: {command}"
    if (evidence["engine"], evidence["artifact_sha256"]) != (entry.engine, entry.artifact_sha256):
        return f"what was measured is not these weights with {entry.engine}; measure them with: {command}"
    return next(_drops(entry), None)


def _drops(entry: RegistryEntry) -> Iterator[str]:
    for test in (entry.engine_evidence or {})["tests"]:
        for answer in map(str, Attribution):
            torch_f1, engine_f1 = test["torch"][answer]["f1"], test["engine"][answer]["f1"]
            # Written as "not within", so that what is no number is a drop.
            if not engine_f1 >= torch_f1 - F1_MAY_DROP:
                yield (
                    f"on {test['home']} the F1 of its {answer} answer drops from {torch_f1:.4f} to {engine_f1:.4f} "
                    f"with {entry.engine}; {F1_MAY_DROP} is allowed"
                )
