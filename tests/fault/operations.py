"""What can happen to a running system, by the numbers of our list of faults; each says what it did."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx

from models.registry import Registry
from serve_app.access.development import mint_development_token
from serve_app.cli.processes import OwnedProcesses
from tests.bench.overload import OK, REFUSED, latencies_ms, send
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.load import percentile
from tests.bench.serving.request_set import http_requests, infer_requests
from tests.fault.raylets import Raylet, node_id
from tests.fault.system import BATCHES_PER_MINUTE, TWICE, System
from tests.integration.service import SECRET

CAPACITY_CLIENTS, CAPACITY_S = 64, 5.0
OVERLOAD_TIMES, OVERLOAD_S = 4.0, 10.0
BLOCKED_S = 10.0
LEAVE_S = 90
NEW_NODE_AFTER_S = 5.0
"""As long as somebody takes to notice that one is gone."""


@dataclass(frozen=True)
class Fault:
    """`act` returns a remark for the table. `balanced`: there, clients of a single node wait while it is not ready."""

    number: str
    title: str
    act: Callable[[System], Awaitable[str]]
    nodes: tuple[int, ...] = (1, 3)
    at_least_s: float = 0.0
    balanced: bool = False


async def kill_replica(system: System) -> str:
    """Of the model."""
    return await _kill_one(system, "kettle")


async def kill_ingress(system: System) -> str:
    """The clients' connections go with it."""
    return await _kill_one(system, "ingress")


async def kill_writer(system: System) -> str:
    """There is one."""
    return await _kill_one(system, "persistence")


async def _kill_one(system: System, deployment: str) -> str:
    replica = random.choice(await asyncio.to_thread(system.replicas, deployment))  # noqa: S311
    os.kill(replica["pid"], signal.SIGKILL)
    return "one of two" if deployment in TWICE else ""


async def kill_controller(system: System) -> str:
    """Serve's; Ray starts it again."""
    os.kill(processes(system, "ray::ServeController")[0], signal.SIGKILL)
    return ""


async def _kill_proxy(system: System) -> str:
    # The newest on a node takes what comes; older ones finish what they had when it was configured anew.
    newest = {os.getsid(pid): pid for pid in sorted(processes(system, "haproxy"))}
    os.kill(random.choice(list(newest.values())), signal.SIGKILL)  # noqa: S311
    return f"one of {len(newest)}" if len(newest) > 1 else ""


def processes(system: System, name: str) -> list[int]:
    """Of this system, whose command or title is that."""
    found = []
    for pid in OwnedProcesses(system.service.data_dir).find():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].decode(errors="replace").rpartition("/")[2].startswith(name):
            found.append(pid)
    return found


async def _overload(system: System) -> str:
    # A process of its own: what clients measure must not wait for what others of this one do.
    with ProcessPoolExecutor(1, get_context("spawn")) as others:
        asked = others.submit(_overload_now, system.service.url, system.service.token())
        return await asyncio.wrap_future(asked)


def _overload_now(url: str, token: str) -> str:
    host, port = url.removeprefix("http://").split(":")
    entry = Registry.load().active("kettle")
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests"
        infer_requests(token, "kettle", entry.input_window_size).write(requests)
        capacity = closed_loop(url, requests, CAPACITY_CLIENTS, CAPACITY_S).per_second
        phases = [(OVERLOAD_TIMES * capacity, OVERLOAD_S)]
        replies, _ = send(http_requests(requests, f"{host}:{port}"), host, int(port), phases)
    done, refused = latencies_ms(replies, OK), latencies_ms(replies, REFUSED)
    others = Counter(one.status for one in replies if one.status not in {OK, REFUSED})
    return (
        f"{len(replies) / OVERLOAD_S:.0f}/s offered, capacity {capacity:.0f}/s: {len(done) / OVERLOAD_S:.0f}/s done, "
        f"p99 {percentile(done, 0.99):.0f} ms; refused after {percentile(refused, 0.5):.0f} ms "
        f"(p99 {percentile(refused, 0.99):.0f}); {sum(others.values())} others"
    )


async def _use_up_a_quota(system: System) -> str:
    """One user's calls of `/infer/batch`, each on a connection of its own, so that all ingresses get some."""
    token = mint_development_token(SECRET, "tester", 60, "nilm-development")
    item = {"building_id": "quota", "appliance_id": "kettle", "window": system.window}
    statuses: Counter[int] = Counter()
    end_s = time.monotonic() + 30
    while statuses[200] + statuses[429] < 2 * BATCHES_PER_MINUTE and time.monotonic() < end_s:
        async with httpx.AsyncClient(base_url=system.service.url, timeout=15, trust_env=False) as client:
            reply = await client.post(
                "/infer/batch", json={"items": [item]}, headers={"Authorization": f"Bearer {token}"}
            )
            statuses[reply.status_code] += 1
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return f"quota {BATCHES_PER_MINUTE}: {told}"


async def _block_event_loop(system: System) -> str:
    pending = system.block_file.with_suffix(".new")
    pending.write_text(str(BLOCKED_S))
    pending.rename(system.block_file)
    await asyncio.sleep(1.0)
    assert not system.block_file.exists(), "no ingress took it"
    return f"one of two ingresses, {BLOCKED_S:.0f} s"


async def _lose_the_machine(system: System) -> str:
    """All processes of a single node at once; then it is started again."""
    count = await asyncio.to_thread(system.service.kill_everything)
    system.service.process.wait()
    began_s = time.monotonic()
    system.service.start_again()
    await asyncio.to_thread(system.settle)
    return f"{count} processes; ready {time.monotonic() - began_s:.0f} s after it was started again"


async def _stop_and_start(system: System) -> str:
    system.service.process.send_signal(signal.SIGTERM)
    began_s = time.monotonic()
    await asyncio.to_thread(system.service.process.wait, 120)
    stopped_s = time.monotonic() - began_s
    system.service.start_again()
    await asyncio.to_thread(system.settle)
    return f"stopped in {stopped_s:.0f} s, ready {time.monotonic() - began_s - stopped_s:.0f} s after it was started"


async def lose_a_node(system: System) -> str:
    """The one that has been there for longest; another one joins a little later."""
    node = system.nodes[0]
    count = await asyncio.to_thread(node.kill)
    await _another_instead(system, node)
    began_s = time.monotonic()
    await asyncio.to_thread(system.settle)
    return f"{count} processes; all replicas {time.monotonic() - began_s:.0f} s after a new node had joined"


async def _cut_off_a_node(system: System) -> str:
    """Its machine is without power, or nobody can reach it: no connection is closed, everything is just silent."""
    assert system.network is not None
    node = system.nodes[0]
    system.network.cut(node.address)
    await _another_instead(system, node)
    await asyncio.to_thread(node.kill)
    return "its processes end unseen"


async def _another_instead(system: System, gone: Raylet) -> None:
    """Clients' requests go on coming to the one that is gone, until those in front of it have noticed by themselves."""
    await asyncio.sleep(NEW_NODE_AFTER_S)
    await asyncio.to_thread(system.add_node)
    system.nodes.remove(gone)


async def _drain_a_node(system: System) -> str:
    """As a pod's preStop hook and then Kubernetes do, with a new pod first."""
    leaving = system.nodes.pop(0)
    await asyncio.to_thread(system.add_node)
    began_s = time.monotonic()
    code, said = await asyncio.to_thread(_leave, system, node_id(system.service, leaving.name))
    left_s = time.monotonic() - began_s
    await asyncio.to_thread(leaving.terminate)
    stopped_s = time.monotonic() - began_s - left_s
    await asyncio.to_thread(system.settle)
    return f"`nilm leave` ended with {code} after {left_s:.0f} s ({said}), stopped {stopped_s:.0f} s later"


def _leave(system: System, node: str) -> tuple[int, str]:
    """`nilm leave`, with what `nilm run` says of its cluster."""
    nilm = f"{sys.executable} -m serve_app.cli.main"
    command = f". {system.service.data_dir}/serve-env.sh && exec {nilm} leave --node-id {node} --within-s {LEAVE_S}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=LEAVE_S + 60, check=False)
    return done.returncode, (done.stdout.strip() or done.stderr.strip().splitlines()[-1])


FAULTS = (
    Fault("2", "an appliance replica killed", kill_replica),
    Fault("3", "an ingress killed", kill_ingress),
    Fault("4", "the controller killed", kill_controller),
    Fault("5", "a proxy killed", _kill_proxy),
    Fault("10", "overload, four times the capacity", _overload, at_least_s=30.0),
    Fault("13", "one quota over both ingresses", _use_up_a_quota, at_least_s=35.0),
    Fault("14", "the machine lost and started again", _lose_the_machine, nodes=(1,), at_least_s=60.0),
    Fault("14", "a node lost", lose_a_node, nodes=(3,), at_least_s=60.0),
    Fault("14b", "a node cut off the network", _cut_off_a_node, nodes=(3,), at_least_s=100.0),
    Fault("15", "SIGTERM, then started again", _stop_and_start, nodes=(1,), at_least_s=75.0, balanced=True),
    Fault("15", "a node leaves", _drain_a_node, nodes=(3,), at_least_s=75.0),
    Fault("19", "an event loop blocked", _block_event_loop, at_least_s=25.0),
)
