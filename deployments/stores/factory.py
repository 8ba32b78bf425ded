"""Which store, and how to open it. `StoreConfig` travels to the Persistence replica; the open store stays there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deployments.stores.base import HistoryReader, PredictionStore, StoreUnavailable

TOKEN_VARIABLE = "INFLUX_TOKEN"  # noqa: S105 - the name of a variable


class StoreKind(StrEnum):
    """The stores there are."""

    SQLITE = "sqlite"
    INFLUXDB = "influxdb"


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where predictions go. Build it with `for_sqlite` or `for_influx`.

    It holds no secret, because Ray keeps and shows what deployments are made with: InfluxDB's token is in the
    environment (`INFLUX_TOKEN`) of whoever opens the store.
    """

    kind: StoreKind
    sqlite_path: Path | None = None
    retention_days: int = 0
    """Of the embedded store; 0 keeps every row. InfluxDB's buckets have a retention of their own."""
    influx_url: str = ""
    influx_org: str = ""
    influx_bucket_pred: str = ""
    influx_bucket_raw: str = ""
    influx_timeout_s: float = 2.0
    """Longest wait for one answer of InfluxDB to a write."""
    influx_read_timeout_s: float = 8.0
    """And to a query, which may read a year."""

    def __post_init__(self) -> None:
        if self.kind is StoreKind.SQLITE and self.sqlite_path is None:
            raise ValueError("a SQLite store needs sqlite_path")
        if self.kind is StoreKind.INFLUXDB:
            names = ("influx_url", "influx_org", "influx_bucket_pred", "influx_bucket_raw")
            missing = [name for name in names if not getattr(self, name)]
            if missing:
                raise ValueError(f"an InfluxDB store needs {', '.join(missing)}")
            if not self.influx_timeout_s > 0:
                raise ValueError("influx_timeout_s must be positive")

    @classmethod
    def for_sqlite(cls, path: Path, retention_days: int = 0) -> StoreConfig:
        """The embedded store at `path`, on the node of the Persistence replica."""
        return cls(kind=StoreKind.SQLITE, sqlite_path=path, retention_days=retention_days)

    @classmethod
    def for_influx(
        cls, *, url: str, org: str, bucket_pred: str, bucket_raw: str, timeout_s: float = 2.0
    ) -> StoreConfig:
        """InfluxDB 2 at `url`; `INFLUX_TOKEN` must be allowed to read and write both buckets."""
        return cls(
            kind=StoreKind.INFLUXDB,
            influx_url=url,
            influx_org=org,
            influx_bucket_pred=bucket_pred,
            influx_bucket_raw=bucket_raw,
            influx_timeout_s=timeout_s,
        )


def open_store(config: StoreConfig) -> PredictionStore:
    """Open the configured store.

    Raises StoreUnavailable when an SQLite file cannot be used, or without InfluxDB's token. InfluxDB is not contacted
    before its first use.
    """
    if config.sqlite_path is not None:
        from deployments.stores.sqlite import SqliteStore  # noqa: PLC0415 - only the chosen store is imported

        return SqliteStore(config.sqlite_path, retention_days=config.retention_days)
    from deployments.stores.influx import InfluxStore  # noqa: PLC0415 - its client takes half a second to import

    return InfluxStore(**_influx(config), timeout_s=config.influx_timeout_s)


def open_history(config: StoreConfig) -> HistoryReader:
    """The reading side of the configured store; contacts nothing before its first use. Raises as `open_store`."""
    if config.sqlite_path is not None:
        from deployments.stores.sqlite_history import SqliteHistory  # noqa: PLC0415 - only the chosen store

        return SqliteHistory(config.sqlite_path)
    from deployments.stores.influx_history import InfluxHistory  # noqa: PLC0415 - only the chosen store

    return InfluxHistory(**_influx(config), timeout_s=config.influx_read_timeout_s)


def _influx(config: StoreConfig) -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise StoreUnavailable(f"{TOKEN_VARIABLE} is not set on this node")
    return {
        "url": config.influx_url,
        "token": token,
        "org": config.influx_org,
        "bucket_pred": config.influx_bucket_pred,
        "bucket_raw": config.influx_bucket_raw,
    }
