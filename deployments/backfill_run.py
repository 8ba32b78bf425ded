"""A backfill on the cluster of a running service: Ray Data carries stretches of time to workers beside live traffic.

Workers read through the History deployment and write through Persistence, so a store has no second writer, and none of
its credentials leave the service. Everything may be run twice: a minute that has its prediction is not predicted again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TypeVar

import ray.data
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.backfill import Stretch, pending, predict
from deployments.contracts import NotPersisted, PersistFailure, PredictionPoint, RecordSet
from deployments.history_contracts import HistoryFailed, StoredMinutes
from deployments.registry_source import registry_source
from models.loader import LoadedModel, load_verified
from models.refusal import ArtifactRefused
from models.registry import RegistryError

COMMIT_POINTS = 240
"""Rows of one write: some 25 ms in the embedded store, which is what a live prediction may have to wait longer."""
ANSWER_S = 30.0
PATIENCE_S = 300.0
"""How long a store that is away, or busy, is waited for before the backfill gives up."""
WORKER_CPUS = 0
"""Logical: the service's replicas, and those it may still start, have a claim to all there are. What a worker really
gets is what nobody else wants."""
WORKER_RESTARTS = 5
"""Of a worker that dies; one that dies of its work would do so for ever."""

WORKER_ENVIRONMENT = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
"""A worker has no event loop, in which production mode would run the router of its handles."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StretchDone:
    """What became of one stretch, in minutes; with `failure`, why the backfill cannot go on."""

    appliance_id: str
    stored: int = 0
    already_stored: int = 0
    mains_missing: int = 0
    not_kept: int = 0
    """Older than what the store keeps, or without a finite answer of the model."""
    failure: str = ""


class BackfillFailed(Exception):
    """Why a worker gave up, as a sentence for people."""


class StretchWorker:
    """Ray Data's worker: one stretch a call, as rows of a data set."""

    def __init__(self, application: str, request_id: str) -> None:
        _give_way()
        self._history = serve.get_deployment_handle("history", application)
        self._persistence = serve.get_deployment_handle("persistence", application)
        self._source = registry_source()
        self._request_id = request_id
        self._models: dict[tuple[str, str], LoadedModel] = {}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A `Stretch` in, a `StretchDone` out. A failure is a row too: it must end the run, not be tried again."""
        stretch = Stretch(**row)
        try:
            done = self._run(stretch)
        except (BackfillFailed, RegistryError, ArtifactRefused) as failure:
            done = StretchDone(stretch.appliance_id, failure=str(failure))
        except Exception as error:
            logger.exception("a stretch could not be backfilled")
            reason = f"a worker failed with {type(error).__name__}: {error}"
            done = StretchDone(stretch.appliance_id, failure=reason)
        return asdict(done)

    def _run(self, stretch: Stretch) -> StretchDone:
        model = self._model(stretch.appliance_id, stretch.model_version)
        query = stretch.query(model.entry)

        def read() -> StoredMinutes:
            answer = self._history.minutes.remote(query).result(timeout_s=ANSWER_S)
            if isinstance(answer, HistoryFailed):
                raise _Away(answer.detail, answer.retry_after_s)
            stored: StoredMinutes = answer
            return stored

        minutes = pending(query, model.entry, self._patiently(read))
        points = predict(model, query, minutes, self._request_id)
        stored = 0
        while part := tuple(islice(points, COMMIT_POINTS)):
            stored += self._patiently(lambda part=part: self._write(part))  # type: ignore[misc]
        return StretchDone(
            stretch.appliance_id,
            stored=stored,
            not_kept=len(minutes.time_ns) - stored,
            already_stored=minutes.already_stored,
            mains_missing=minutes.mains_missing,
        )

    def _model(self, appliance_id: str, version: str) -> LoadedModel:
        key = (appliance_id, version)
        if key not in self._models:
            registry = self._source.registry()
            entry = registry.resolve(appliance_id, version)
            self._models[key] = load_verified(entry, self._source.fetch(entry, registry))
        return self._models[key]

    def _write(self, points: tuple[PredictionPoint, ...]) -> int:
        """How many of them are stored."""
        if not points:
            return 0
        record_set = RecordSet(points, time.time() + ANSWER_S)
        (result,) = self._persistence.persist.remote((record_set,)).result(timeout_s=ANSWER_S)
        if isinstance(result, NotPersisted):
            if result.oldest_kept_ns is not None:
                oldest_ns = result.oldest_kept_ns
                return self._write(tuple(point for point in points if point.time_ns >= oldest_ns))
            if result.failure is PersistFailure.REJECTED:
                raise BackfillFailed(f"the store refuses these predictions: {result.detail}")
            raise _Away(result.detail, result.retry_after_s)
        return len(points)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Reads and writes may be made twice, so whatever may pass is waited for. Raises BackfillFailed."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except _Away as away:
                reason, pause_s = str(away), away.retry_after_s
            except RayTaskError:
                raise  # the replica lives and its code failed: again would fail again
            except (RayError, RayServeException, TimeoutError) as lost:
                reason, pause_s = f"no answer ({type(lost).__name__})", 1.0
            if time.monotonic() + pause_s > until:
                raise BackfillFailed(f"the store was away for {PATIENCE_S:.0f} s: {reason}")
            time.sleep(pause_s)


class _Away(Exception):
    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


def _give_way() -> None:
    """Run only where nobody else wants to: a live window must not wait for one of last year."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def run(
    work: Sequence[Stretch],
    application: str,
    request_id: str,
    workers: int = 1,
) -> Iterator[StretchDone]:
    """What became of each stretch, as it ends. The driver must be connected to the cluster.

    Raises BackfillFailed at the first stretch that failed; what was stored stays stored.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = ray.data.from_items([asdict(stretch) for stretch in work], override_num_blocks=len(work))
    done = rows.map(
        StretchWorker,  # type: ignore[arg-type]  # a class, of which Ray makes an instance in each worker
        fn_constructor_args=(application, request_id),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=WORKER_CPUS,
        ray_remote_args_fn=lambda: {
            "max_restarts": WORKER_RESTARTS,
            "max_task_retries": WORKER_RESTARTS,
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
        },
    )
    try:
        for row in done.iter_rows():
            outcome = StretchDone(**row)
            if outcome.failure:
                raise BackfillFailed(outcome.failure)
            yield outcome
    except RayError as error:
        raise BackfillFailed(f"the cluster stopped the work: {str(error).splitlines()[0]}") from error
