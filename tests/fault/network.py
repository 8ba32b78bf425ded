"""A network of their own for nodes on one machine: a namespace for each, joined by a bridge that the machine is on.

So every node has all ports to itself, as machines have, and can be asked by its address. Linux, root, iproute2.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PREFIX = "10.77.0"
"""Of a private network; `PREFIX.1` is this machine."""


@dataclass
class Network:
    """The bridge and who is on it. Made by `network`."""

    bridge: str
    address: str = f"{PREFIX}.1"
    _count: int = 0
    _namespaces: list[str] = field(default_factory=list)

    def add(self) -> tuple[list[str], str]:
        """One more namespace: what to put in front of a command that is to run in it, and its address."""
        self._count += 1
        name, inside = f"{self.bridge}-{self._count}", f"{self.bridge}v{self._count}"
        address = f"{PREFIX}.{self._count + 1}"
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("link", "add", inside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", inside, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        # The head is at whatever address this machine calls its own.
        _ip("-n", name, "route", "add", "default", "via", self.address)
        return ["ip", "netns", "exec", name], address

    def cut(self, address: str) -> None:
        """Nothing reaches that address any more, and nothing that was sent from there arrives."""
        _ip("link", "set", f"{self.bridge}v{int(address.rpartition('.')[2]) - 1}", "down")

    def close(self) -> None:
        """Take everything down."""
        for name in self._namespaces:
            _ip("netns", "delete", name)
        _ip("link", "delete", self.bridge)


@contextmanager
def network() -> Iterator[Network]:
    """One at a time on a machine."""
    made = Network(f"nilm{os.getpid() % 10_000}")
    _ip("link", "add", made.bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        yield made
    finally:
        made.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
