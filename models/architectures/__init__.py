"""The architectures by name. A registry entry names one; `build` makes it.

To add one: write a `SequenceModel` in its own file, decorate it with `@register("Name")`, import it below.
"""

from __future__ import annotations

from models.architectures.base import (
    ArchitectureError,
    SequenceModel,
    build,
    names,
    register,
)
from models.architectures.cnn_transformer import CNNTransformer
from models.architectures.ensemble import Ensemble
from models.architectures.nilmformer import NILMFormer
from models.architectures.readout import COVERAGES, INTERVAL_EDGES, Estimate, Readout
from models.architectures.seq2point import Seq2Point
from models.architectures.temporal_pooling_unet import TemporalPoolingUNet

__all__ = [
    "COVERAGES",
    "INTERVAL_EDGES",
    "ArchitectureError",
    "CNNTransformer",
    "Ensemble",
    "Estimate",
    "NILMFormer",
    "Readout",
    "Seq2Point",
    "SequenceModel",
    "TemporalPoolingUNet",
    "build",
    "names",
    "register",
]
