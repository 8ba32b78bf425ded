"""Ports that nothing listens on, for servers that are told theirs before they take them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 20_000
"""Ray gives its workers those below it."""
HIGHEST_PORT = 29_999
"""Blocks of ports, see `reserve_block`, begin above it."""
BLOCK_PORTS = 100
"""More than one machine has ingresses."""
OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
DEFAULT_OUTGOING_PORT = 32_768
TRIES = 100


def free_port(preferred: int | None = None) -> int:
    """A port of 127.0.0.1 that nothing listens on: the preferred one if it is free, else any.

    Not one of those that the kernel gives to outgoing connections, while there are others: Ray opens hundreds before it
    takes the last of its ports, and all of it ends when one is gone by then. Raises OSError: none is left.
    """
    for candidate in (preferred, *random.sample(range(LOWEST_PORT, min(_lowest_outgoing(), HIGHEST_PORT + 1)), TRIES)):
        if candidate is not None and _is_free(candidate):
            return candidate
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def reserve_block() -> tuple[socket.socket, range]:
    """Ports for one run alone, for as long as the socket, which has the one in front of them, is open.

    Serve's own choice is the same in every run: the port of the proxy that its HAProxy turns to while no ingress is up,
    which it takes with SO_REUSEPORT, so that the kernel would give either run the other's requests; and the ports of
    ingresses, which HAProxy of one run may still know when the other has them. Raises OSError: each is somebody's.
    """
    firsts = range(HIGHEST_PORT + 1, DEFAULT_OUTGOING_PORT - BLOCK_PORTS, BLOCK_PORTS)
    for first in random.sample(firsts, len(firsts)):
        mark = socket.socket()
        try:
            mark.bind((LOOPBACK, first))
            mark.listen()
        except OSError:
            mark.close()
            continue
        return mark, range(first + 1, first + BLOCK_PORTS)
    raise OSError(f"each of the {len(firsts)} blocks of ports from {firsts[0]} on is in use")


def _lowest_outgoing() -> int:
    try:
        lowest = int(OUTGOING_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):  # not Linux, or hidden
        lowest = DEFAULT_OUTGOING_PORT
    return lowest if lowest >= LOWEST_PORT + TRIES else DEFAULT_OUTGOING_PORT


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
