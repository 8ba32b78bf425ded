"""Durable places for predictions: the protocol in `base`, SQLite and InfluxDB 2 behind it."""

from deployments.stores.base import HistoryReader, PredictionStore, StoreUnavailable
from deployments.stores.factory import StoreConfig, StoreKind, open_history, open_store

__all__ = [
    "HistoryReader",
    "PredictionStore",
    "StoreConfig",
    "StoreKind",
    "StoreUnavailable",
    "open_history",
    "open_store",
]
