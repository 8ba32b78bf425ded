"""The drill of docs/operations.md, "Backup and restore": a backup under load, the file destroyed, the runbook's own
commands, and everything that was acknowledged before the backup began is there again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.service import ROOT, Service, running_service, service_config, shape_of

pytestmark = pytest.mark.integration
START = (datetime.now(UTC) - timedelta(days=10)).replace(second=0, microsecond=0)
METERS = 4
"""Buildings that send, each a window a minute of its own time, as fast as it is answered."""
BEFORE = 60
AFTER = 20
"""Acknowledgements to wait for before the backup begins, and answered requests that were sent after it ended."""
PATIENCE_S = 60.0
UNLIMITED = {"RATE_LIMIT_PER_USER": "100000", "RATE_LIMIT_PER_IP": "100000"}
NILM = Path(sys.executable).with_name("nilm")
RUNBOOK = ROOT / "docs/operations.md"
TEXT_BLOCK = re.compile(r"^```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE_NAME = "predictions.sqlite3"


@dataclass(frozen=True)
class Answered:
    """A request that got 200, and when, by `time.monotonic()`."""

    key: str
    body: dict[str, Any]
    reply: httpx.Response
    sent_s: float
    acknowledged_s: float

    @property
    def request_id(self) -> str:
        return str(self.reply.json()["request_id"])

    @property
    def power_kw(self) -> float:
        return float(self.reply.json()["predicted_kw"])

    @property
    def instant(self) -> datetime:
        return datetime.fromisoformat(self.reply.json()["predicted_for"])


@dataclass(frozen=True)
class Drill:
    """What was answered while a backup was made, by when that was."""

    before: list[Answered]
    meanwhile: list[Answered]
    after: list[Answered]
    """Sent after the backup had ended."""


def run(data_dir: Path, *command: str, **variables: str) -> str:
    """What a command says of this data folder; it must end well."""
    environment = {**os.environ, "PATH": f"{NILM.parent}:{os.environ['PATH']}", "NILM_DATA_DIR": str(data_dir)}
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documented_restore() -> str:
    """The runbook's commands, as they stand there."""
    blocks = [block for block in TEXT_BLOCK.findall(RUNBOOK.read_text()) if FILE_NAME in block]
    assert len(blocks) == 1, f"{RUNBOOK.name} has {len(blocks)} blocks of text that name {FILE_NAME}, not one"
    return str(blocks[0])


def post(client: httpx.Client, key: str, body: dict[str, Any]) -> httpx.Response:
    reply = client.post("/infer", json=body, headers={"Idempotency-Key": key})
    assert reply.status_code == 200, f"{key} got {reply.status_code}: {reply.text}"
    return reply


def send(client: httpx.Client, building_id: str, seen: list[Answered], stop: threading.Event) -> None:
    """One meter, until it is told to stop; whatever is not answered with 200 ends it with an error."""
    shape = shape_of(client, "kettle")
    size, middle = int(shape["input_window_size"]), int(shape["output_sample_index"])
    minute = 0
    while not stop.is_set():
        minute += 1
        # A kettle that boils in every other one, so that answers differ.
        boils_kw = 2.8 if minute % 2 else 0.0
        key = f"{building_id}/{minute}"
        body = {
            "building_id": building_id,
            "appliance_id": "kettle",
            "timestamp": (START + timedelta(minutes=minute)).isoformat(),
            "window": [0.2 + (boils_kw if abs(n - middle) <= 1 else 0.0) for n in range(size)],
        }
        sent_s = time.monotonic()
        reply = post(client, key, body)
        seen.append(Answered(key, body, reply, sent_s, time.monotonic()))


def until(condition: Callable[[], bool], what: str, meters: Sequence[Future[None]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        for one in meters:
            if one.done():
                one.result()  # raises what ended it
        assert time.monotonic() < end, f"there were not {what} within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def back_up_under_load(service: Service, client: httpx.Client, copy: Path) -> Drill:
    """A backup by the real command while meters send."""
    seen: list[Answered] = []
    stop = threading.Event()
    with ThreadPoolExecutor(METERS) as pool:
        meters = [pool.submit(send, client, f"drill-{n}", seen, stop) for n in range(METERS)]
        try:
            until(lambda: len(seen) >= BEFORE, f"{BEFORE} acknowledgements", meters)
            began_s = time.monotonic()
            said = run(service.data_dir, "nilm", "db", "backup", str(copy))
            ended_s = time.monotonic()
            until(lambda: sum(one.sent_s > ended_s for one in seen) >= AFTER, f"{AFTER} answers after it", meters)
        finally:
            stop.set()
        for one in meters:
            one.result()
    assert "checked" in said, f"the backup does not say that it was checked: {said}"
    drill = Drill(
        before=[one for one in seen if one.acknowledged_s < began_s],
        meanwhile=[one for one in seen if began_s < one.acknowledged_s < ended_s],
        after=[one for one in seen if one.sent_s > ended_s],
    )
    print(f"answered: {len(drill.before)} before, {len(drill.meanwhile)} during, {len(drill.after)} sent after it")
    assert drill.meanwhile, "nothing was answered while the backup was made: the service waited for it"
    return drill


def history(client: httpx.Client) -> dict[tuple[str, datetime], float | None]:
    """Power by building and minute, as `GET /analytics/predictions` tells it."""
    asked = {
        "start": (START - timedelta(days=1)).isoformat(),
        "end": (START + timedelta(days=1)).isoformat(),
        "resolution": "1m",
        "appliance_id": "kettle",
    }
    told: dict[tuple[str, datetime], float | None] = {}
    for building_id in (f"drill-{n}" for n in range(METERS)):
        reply = client.get("/analytics/predictions", params={**asked, "building_id": building_id})
        assert reply.status_code == 200, reply.text
        for row in reply.json()["rows"]:
            told[building_id, datetime.fromisoformat(row["time"])] = row["predicted_kw"]
    return told


def check_history(client: httpx.Client, answered: Iterable[Answered]) -> None:
    told = history(client)
    for one in answered:
        power_kw = told.get((one.body["building_id"], one.instant))
        assert power_kw == pytest.approx(one.power_kw, abs=1e-6), (
            f"{one.key} said {one.power_kw} kW for {one.instant}, and history says {power_kw}"
        )


def test_a_destroyed_file_comes_back_as_documented_with_all_that_was_acknowledged_before_the_backup(
    tmp_path: Path,
) -> None:
    restore = documented_restore()
    copy = tmp_path / "backup.sqlite3"
    config = service_config(tmp_path / "serve_config.yaml", appliances=["kettle"])
    with running_service(tmp_path, config, UNLIMITED) as service, service.client() as client:
        drill = back_up_under_load(service, client, copy)

    assert service.database.name == FILE_NAME
    service.database.unlink()
    for suffix in ("-wal", "-shm"):
        service.database.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
    said = run(service.data_dir, "bash", "-c", f"set -euo pipefail\n{restore}", BACKUP=str(copy))
    assert "whole" in said, f"the runbook's commands do not say that what they restored is whole:\n{said}"

    with running_service(tmp_path, config, UNLIMITED) as again, again.client() as client:
        restored = {row["request_id"] for row in again.rows()}
        lost = [one.key for one in drill.before if one.request_id not in restored]
        assert not lost, f"acknowledged before the backup began, and not in it: {lost}"
        kept = [one.key for one in drill.after if one.request_id in restored]
        assert not kept, f"sent after the backup ended, and there: what serves is not the restored copy: {kept}"
        check_history(client, drill.before)
        for one in drill.before:
            repeated = post(client, one.key, one.body)
            assert repeated.headers.get("Idempotency-Replayed") == "true", f"{one.key} ran once more"
            assert repeated.content == one.reply.content, f"{one.key} was answered with another reply than before"
        # What came after the backup is lost until its clients come back with it.
        for one in drill.after:
            repeated = post(client, one.key, one.body)
            assert "Idempotency-Replayed" not in repeated.headers, f"{one.key} got a reply that was lost"
        check_history(client, [*drill.before, *drill.after])
        said = run(again.data_dir, "nilm", "db", "check")
        assert "whole" in said, f"the restored file is not whole after some use:\n{said}"
