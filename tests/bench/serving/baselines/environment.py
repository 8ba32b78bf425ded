"""What a baseline's processes are told, by environment variables: they must reach workers that somebody else starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DATABASE_VARIABLE = "NILM_BENCH_DATABASE"
MODEL_VERSION_VARIABLE = "NILM_BENCH_MODEL_VERSION"
SECRET_VARIABLE = "SUPABASE_JWT_SECRET"


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """Where to write, which kettle model to run, and the shared secret of the tokens."""

    database: Path
    model_version: str
    secret: str

    @classmethod
    def from_environment(cls) -> BaselineSettings:
        """Raises KeyError for a variable that the benchmark did not set."""
        names = (DATABASE_VARIABLE, MODEL_VERSION_VARIABLE, SECRET_VARIABLE)
        database, model_version, secret = (os.environ[name] for name in names)
        return cls(Path(database), model_version, secret)
