"""The evidence that `nilm models engine` leaves in a registry entry, invented."""

from __future__ import annotations

from typing import Any


def evidence(artifact_sha256: str, torch_f1: float = 0.95, engine_f1: float = 0.95) -> dict[str, Any]:
    """Of one test; the provisional answer is the same with both engines."""

    def answers(f1: float) -> dict[str, Any]:
        return {"final": {"f1": f1, "mae_w": 3.6}, "provisional": {"f1": 0.9, "mae_w": 4.0}}

    return {
        "engine": "openvino",
        "engine_version": "2026.4.1",
        "artifact_sha256": artifact_sha256,
        "tests": [
            {
                "kind": "unseen_home",
                "home": "UK-DALE House 2",
                "from": "2013-05-20",
                "to": "2013-08-31",
                "torch": answers(torch_f1),
                "engine": answers(engine_f1),
            }
        ],
    }


def on_openvino(row: dict[str, Any], **figures: float) -> dict[str, Any]:
    """What makes a registry row one that runs on OpenVINO."""
    return {"engine": "openvino", "engine_evidence": evidence(row["artifact_sha256"], **figures)}
