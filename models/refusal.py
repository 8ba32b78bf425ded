"""Why an artifact must not serve: a closed set of reasons, shared by who fetches one and who loads one.

Apart from the loader, so that a process which only reads the registry need not import torch.
"""

from __future__ import annotations

from enum import StrEnum


class ArtifactRefusal(StrEnum):
    """The step that failed."""

    ARTIFACT_MISSING = "artifact_missing"
    SHA256_MISMATCH = "sha256_mismatch"
    NOT_SAFETENSORS = "not_safetensors"
    UNKNOWN_ARCHITECTURE = "unknown_architecture"
    WEIGHTS_MISMATCH = "weights_mismatch"
    WEIGHTS_NOT_FINITE = "weights_not_finite"
    WARM_UP_FAILED = "warm_up_failed"
    GOLDEN_MISSING = "golden_missing"
    GOLDEN_MISMATCH = "golden_mismatch"
    ENGINE_UNPROVEN = "engine_unproven"
    ENGINE_MISSING = "engine_missing"
    ENGINE_FAILED = "engine_failed"
    ENGINE_MISMATCH = "engine_mismatch"


class ArtifactRefused(Exception):
    """The artifact must not serve. Picklable: both arguments are `args`."""

    def __init__(self, reason: ArtifactRefusal, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = ArtifactRefusal(reason)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"
