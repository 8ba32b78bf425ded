"""What crosses a deployment handle: frozen dataclasses and the outcomes of a call.

Expected failures are values here, not exceptions, for two reasons: one bad window must not fail the others
of its batch, and an exception that crosses a handle has to survive pickling on both sides.

Times: `deadline_s` is a wall-clock instant (`time.time()`), because it must mean the same in every process.
Sample and point times are integer nanoseconds since the Unix epoch, UTC, as InfluxDB stores them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from deployments.journal_contracts import JournalEntry
from models.attribution import Attribution

WindowKw = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One mains window for one appliance.

    `window_kw`: float32 of shape (input_window_size,), finite, kW, oldest sample first. `building_id` decides which
    version answers while there is a canary.
    """

    building_id: str
    window_kw: WindowKw
    deadline_s: float
    attribution: Attribution = Attribution.FINAL
    trace: str | None = None
    """The `traceparent` of a request that is traced."""


@dataclass(frozen=True, slots=True)
class PowerInterval:
    """Bounds that should hold the true power with probability `coverage`. W, like everything models say."""

    coverage: float
    low_w: float
    high_w: float


@dataclass(frozen=True, slots=True)
class Inference:
    """What a model says about one window. Power in W (models speak W, the public API kW)."""

    predicted_w: float
    on_probability: float
    intervals: tuple[PowerInterval, ...]
    attribution: Attribution
    model_id: str
    model_version: str
    artifact_sha256: str
    output_sample_index: int
    """The sample of the window that this answer stands for."""
    sample_period_s: float
    aggregate_kw: float
    """Mains at the sample the prediction stands for, as the caller sent it, kW."""
    batch_size: int
    queue_ms: float
    forward_ms: float


class InferenceRefusal(StrEnum):
    """Why a window was not run."""

    WINDOW_LENGTH = "window_length"
    NOT_FINITE = "not_finite"
    DEADLINE = "deadline"
    NO_MODEL = "no_model"
    BAD_OUTPUT = "bad_output"
    FAILED = "failed"
    """The model raised; the replica's log says what."""


@dataclass(frozen=True, slots=True)
class InferenceRefused:
    """One window that was not run; the others of its batch are unaffected."""

    reason: InferenceRefusal
    detail: str
    input_window_size: int | None = None


InferenceResult = Inference | InferenceRefused


@dataclass(frozen=True, slots=True)
class RefusedVersion:
    """A version this replica was asked to serve and did not, with the step that failed."""

    model_version: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.model_version}: {self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ApplianceStatus:
    """What one appliance replica serves now: its stable version, None when nothing could be loaded."""

    appliance_id: str
    model_id: str | None
    model_version: str | None
    artifact_sha256: str | None
    input_window_size: int | None
    sample_indices: dict[Attribution, int] | None
    """Which sample of the window each answer stands for."""
    sample_period_s: float | None
    device: str
    loading: bool
    nothing: str
    """Why no version is loaded; empty when one is."""

    @property
    def ready(self) -> bool:
        """True when this replica can answer, even if with an older version than the wanted one."""
        return self.model_version is not None


@dataclass(frozen=True, slots=True)
class PredictionPoint:
    """One stored prediction. Identity: (building_id, appliance_id, model_version, attribution, time_ns).

    Writing the same identity again overwrites it, so a retry never makes a second row. A provisional answer stands
    beside the final one of the same instant and never takes its place, however late it is sent.
    """

    building_id: str
    appliance_id: str
    model_version: str
    attribution: str
    """A value of `Attribution`."""
    time_ns: int
    predicted_kw: float
    confidence: float
    aggregate_kw: float
    request_id: str
    user_id: str
    artifact_sha256: str
    latency_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """n mains readings of one or more buildings, as arrays of length n. Identity of each: (building_id, time_ns).

    `building`: int32, indices into `building_ids`. `time_ns`: int64. `aggregate_kw`: float64, kW.
    """

    building_ids: tuple[str, ...]
    building: npt.NDArray[np.int32]
    time_ns: npt.NDArray[np.int64]
    aggregate_kw: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, float]]) -> Readings:
        """From (building_id, time_ns, aggregate_kw), in their order."""
        listed = list(rows)
        places = {building_id: n for n, building_id in enumerate(dict.fromkeys(row[0] for row in listed))}
        return cls(
            building_ids=tuple(places),
            building=np.array([places[building_id] for building_id, _, _ in listed], dtype=np.int32),
            time_ns=np.array([time_ns for _, time_ns, _ in listed], dtype=np.int64),
            aggregate_kw=np.array([kw for _, _, kw in listed], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request that carries an Idempotency-Key, before it runs.

    `key`: SHA-256 of user and key. `fingerprint`: SHA-256 of method, route and canonical body. Both in hex.
    `received_ns`: the instant its points will stand for, or None when the request itself names one. `token`: the
    caller's own, so that a claim that is asked for again, because its answer was lost, is the same claim.
    """

    key: str
    fingerprint: str
    received_ns: int | None
    deadline_s: float
    token: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Claim:
    """The caller, and nobody else, may run the request of this key until its deadline.

    `received_ns` is that of the key's first attempt, so that a second one stores the same points.
    """

    key: str
    fingerprint: str
    token: str
    received_ns: int | None


class ClaimRefusal(StrEnum):
    """Why a keyed request may not run."""

    OTHER_REQUEST = "other_request"
    """The key belongs to a request with another body."""
    IN_FLIGHT = "in_flight"
    """The first request with this key is still running; retryable."""
    UNAVAILABLE = "unavailable"
    """The store cannot say whether this key was used; retryable."""


@dataclass(frozen=True, slots=True)
class ClaimRefused:
    """A keyed request that may not run."""

    reason: ClaimRefusal
    detail: str
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The reply to the first request with a key, byte for byte."""

    fingerprint: str
    body: bytes


ClaimResult = Claim | StoredReply | ClaimRefused


@dataclass(frozen=True, slots=True)
class Completion:
    """What makes a keyed request complete: its reply, durable together with the points."""

    claim: Claim
    body: bytes

    @property
    def reply(self) -> StoredReply:
        """What later requests with the same key are given."""
        return StoredReply(self.claim.fingerprint, self.body)


@dataclass(frozen=True, slots=True)
class RecordSet:
    """What becomes durable together or not at all: points (one `/infer`: one, one `/disaggregate`: several), readings.

    With `completion`, the reply of a keyed request becomes durable with them. `journal_entry` usually comes alone.
    """

    points: tuple[PredictionPoint, ...]
    deadline_s: float
    completion: Completion | None = None
    readings: Readings | None = None
    journal_entry: JournalEntry | None = None
    trace: str | None = None
    """The `traceparent` of a request that is traced."""

    @property
    def records(self) -> int:
        """How many rows it makes."""
        readings = 0 if self.readings is None else len(self.readings)
        return len(self.points) + readings + (self.journal_entry is not None)


class PersistFailure(StrEnum):
    """Why a record set is not durable."""

    UNAVAILABLE = "unavailable"
    """The store did not answer or said to come back; retryable."""
    REJECTED = "rejected"
    """The store, or our check before it, refused this very record set; a retry would not help."""
    TOO_OLD = "too_old"
    """It is of a time whose rows have left the store; see `oldest_kept_ns`. A retry would not help."""
    QUEUE_FULL = "queue_full"
    """More is waiting than we promise to hold; retryable."""
    DEADLINE = "deadline"
    """The deadline passed before the commit was known; it may or may not be stored."""
    CLAIM_LOST = "claim_lost"
    """Another request runs under this Idempotency-Key meanwhile; nothing was written. Retryable."""


@dataclass(frozen=True, slots=True)
class Persisted:
    """The record set is durable: committed with SQLite synchronous=FULL, or answered 204 by InfluxDB."""

    commit_size: int
    """Record sets that shared this commit."""
    persist_ms: float


@dataclass(frozen=True, slots=True)
class NotPersisted:
    """The record set is not known to be durable and must not be acknowledged."""

    failure: PersistFailure
    detail: str
    retry_after_s: int = 1
    oldest_kept_ns: int | None = None
    """With TOO_OLD: from when on the store takes rows."""


PersistResult = Persisted | StoredReply | NotPersisted
"""`StoredReply`: another request with the same key was stored first, and this record set was not."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Whether the store is usable now. `kind` is `sqlite` or `influxdb`."""

    kind: str
    reachable: bool
    detail: str


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """Requests that one ingress replica has granted to one key and not reported before.

    `quota`: which quota, as in `RateLimit-Policy` ("user", "ip"). `key`: whose, already hashed. `used` may be 0: then
    only the state is asked.
    """

    quota: str
    key: str
    used: int


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What all replicas together have left for one key, and the seconds until it is more."""

    remaining: int
    reset_after_s: float
