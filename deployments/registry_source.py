"""Where this process reads the models from: `MODEL_REGISTRY_URI`, a path or URI; unset: the packaged registry.

From the environment and not from a deployment's arguments, which Ray shows on its dashboard: a URI may be signed.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.source import RegistrySource

REGISTRY_VARIABLE = "MODEL_REGISTRY_URI"
DATA_VARIABLE = "NILM_DATA_DIR"
CACHE_NAME = "models"


def registry_source() -> RegistrySource:
    """The source; remote files are kept in the data folder of this node. Raises `SourceError` for a bad URI."""
    cache = Path(os.environ.get(DATA_VARIABLE) or ".nilm").absolute() / CACHE_NAME
    return RegistrySource(os.environ.get(REGISTRY_VARIABLE) or None, cache)
