"""Durable places for predictions: the protocol in `base`, SQLite and InfluxDB 2 behind it."""

from deployments.stores.base import PredictionStore, StoreUnavailable
from deployments.stores.factory import StoreConfig, StoreKind, open_store

__all__ = ["PredictionStore", "StoreConfig", "StoreKind", "StoreUnavailable", "open_store"]
