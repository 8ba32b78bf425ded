"""Whose address a request comes from, given which proxies are believed.

A peer that is not in TRUSTED_PROXIES counts by its own address, whatever headers it sends: X-Forwarded-For can be
written by anyone. Behind trusted proxies the header is read from the right, where they appended, up to the first
address that is not one of them.

With Ray Serve's HAProxy in front, every replica sees HAProxy's address as the peer, and HAProxy adds no
X-Forwarded-For. So all clients share one address, and one quota, unless a proxy in front of it sets the header and
HAProxy's own address (127.0.0.1 and the nodes') is in TRUSTED_PROXIES together with that proxy's. Then HAProxy must be
reachable through that proxy only: a client that reaches HAProxy itself is taken at its word.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
from collections.abc import Iterator, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"
"""The one key of all peers without a readable address (a Unix socket, a test client)."""

MAX_HOPS = 20
MAX_HOP_CHARS = 64
"""The longest readable hop: a bracketed IPv6 address of 45 characters, a zone id and a port."""

IPV6_CLIENT_BITS = 64
"""One customer's network has at least a /64 (RFC 6177), so a single address there costs nothing to change."""

LEAST_PREFIX = {4: 8, 6: 7}
"""The largest private networks: 10.0.0.0/8 and fc00::/7."""

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?", re.ASCII)
_IPV4_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}", re.ASCII)
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class ClientAddresses:
    """Reads client addresses under one rule of trust."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        """`trusted`: addresses or CIDR networks of our own proxies.

        Raises ValueError naming the entry that cannot be read, or that trusts everyone.
        """
        self._trusted = tuple(_network(entry.strip()) for entry in trusted)

    def of(self, peer: tuple[str, int] | None, forwarded_for: Sequence[str]) -> str:
        """The client's address, in its shortest form. Never raises, whatever is in the header.

        `peer` is the ASGI scope's `client`, `forwarded_for` every X-Forwarded-For header in order. A hop that cannot be
        read ends the walk: what lies left of it was not written by a proxy of ours, so the proxy to its right counts.
        """
        address = _address(peer[0]) if peer is not None else None
        if address is None:
            return UNKNOWN
        for hop in itertools.islice(_from_the_right(forwarded_for), MAX_HOPS):
            if not self._trusts(address):
                break
            before = _address(hop)
            if before is None:
                break
            address = before
        return str(address)

    def believes(self, peer: tuple[str, int] | None) -> bool:
        """Whether this peer's X-Forwarded-For counts."""
        address = _address(peer[0]) if peer is not None else None
        return address is not None and self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def limit_key(address: str) -> str:
    """What shares one quota: an IPv4 address, an IPv6 /64, or everything that is no address."""
    parsed = _address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((parsed, IPV6_CLIENT_BITS), strict=False))
    return UNKNOWN if parsed is None else str(parsed)


def _from_the_right(headers: Sequence[str]) -> Iterator[str]:
    for header in reversed(headers):
        # Split no further than is read; the rest of a long header stays one piece, which the slice drops.
        yield from reversed(header.rsplit(",", MAX_HOPS)[-MAX_HOPS:])


@functools.lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    """An address with or without port, brackets and zone id; IPv4 inside IPv6 becomes IPv4. None: unreadable."""
    text = text.strip(" \t")
    if len(text) > MAX_HOP_CHARS:
        return None
    if match := _BRACKETED.fullmatch(text) or _IPV4_WITH_PORT.fullmatch(text):
        text = match[1]
    if ":" in text:
        text = text.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(entry: str) -> Network:
    try:
        network = ipaddress.ip_network(entry)
    except ValueError as error:
        raise ValueError(f"{entry!r} is neither an address nor a network ({error})") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_IPV4_MAPPED):
        # Addresses are compared unwrapped, so networks must be.
        mapped = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        network = ipaddress.IPv4Network((mapped, network.prefixlen - _IPV4_MAPPED.prefixlen))
    if network.prefixlen < LEAST_PREFIX[network.version]:
        raise ValueError(f"{entry!r} trusts so many that anyone could choose an address")
    return network
