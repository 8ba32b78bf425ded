"""The two answers of a model version: which sample of the window its output stands for."""

from __future__ import annotations

from enum import StrEnum


class Attribution(StrEnum):
    """Every version gives both from one forward pass; a live service sees only the past of an instant at first."""

    FINAL = "final"
    """Centred: as much mains after the instant as before it. Comes hours late and is the best the model can say."""
    PROVISIONAL = "provisional"
    """Near the right edge: minutes late, before the rest of a programme has been seen."""
