"""Whose address a request comes from."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.access.client_address import MAX_HOPS, UNKNOWN, ClientAddresses, limit_key

PROXIES = ["10.0.0.0/8", "127.0.0.1", "fd00::/8", "::1"]
HAPROXY = ("127.0.0.1", 41234)


@pytest.fixture(scope="module")
def addresses() -> ClientAddresses:
    return ClientAddresses(PROXIES)


def test_without_trusted_proxies_the_peer_counts_whatever_it_says() -> None:
    addresses = ClientAddresses()
    assert addresses.of(("203.0.113.9", 1), ["198.51.100.1"]) == "203.0.113.9"
    assert addresses.of(("127.0.0.1", 1), ["198.51.100.1"]) == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        # The peer is no proxy of ours: its header is its own invention.
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        # One proxy, then two.
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("::1", ["2001:db8::7, fd00::2"], "2001:db8::7"),
        # What a client wrote stands left of what our proxy appended.
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.9.9.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        # Several headers are one list, in order.
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1,198.51.100.1", "10.0.0.2\t, 10.0.0.3"], "198.51.100.1"),
        # Only proxies of ours: the farthest.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        # An unreadable hop ends the walk at the proxy that reported it.
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,,10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.1 "], "198.51.100.1"),
        # Forms of one address.
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::7]:80"], "2001:db8::7"),
        ("10.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("10.0.0.1", ["2001:DB8:0:0::7"], "2001:db8::7"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", ["[fe80::1%25eth0]:80"], "fe80::1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["[::ffff:198.51.100.1]:80"], "198.51.100.1"),
        # A dual-stack socket shows IPv4 peers as mapped; trust must not depend on it.
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        # Nothing that only looks like an address.
        ("10.0.0.1", ["198.51.100.01"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100"], "10.0.0.1"),
        ("10.0.0.1", ["3325256705"], "10.0.0.1"),
        ("10.0.0.1", ["0x7f.1"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1/32"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:99999999"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1%eth0"], "10.0.0.1"),
        ("10.0.0.1", ["[198.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["[[::1]]"], "10.0.0.1"),
        ("10.0.0.1", ["١٩٨.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1\x00"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1\r\nX: y"], "10.0.0.1"),
        ("10.0.0.1", ['"198.51.100.1"'], "10.0.0.1"),
        ("10.0.0.1", ["for=198.51.100.1"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%" + "z" * 500], "10.0.0.1"),
        ("10.0.0.1", ["9" * 1_000_000], "10.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_proxy_of_ours(
    addresses: ClientAddresses, peer: str, headers: list[str], client: str
) -> None:
    assert addresses.of((peer, 1), headers) == client


def test_behind_haproxy_alone_all_clients_share_one_address(addresses: ClientAddresses) -> None:
    assert addresses.of(HAPROXY, []) == "127.0.0.1"
    assert limit_key(addresses.of(HAPROXY, [])) == "127.0.0.1"


def test_behind_haproxy_a_proxy_in_front_tells_them_apart(addresses: ClientAddresses) -> None:
    # The outer proxy (10.0.0.5) set the header and HAProxy passed it on unchanged: the client, then nothing of HAProxy.
    assert addresses.of(HAPROXY, ["198.51.100.1"]) == "198.51.100.1"
    assert addresses.of(HAPROXY, ["198.51.100.2, 10.0.0.5"]) == "198.51.100.2"
    # With HAProxy not trusted the header is not read at all.
    assert ClientAddresses(["10.0.0.5"]).of(HAPROXY, ["198.51.100.1"]) == "127.0.0.1"


@pytest.mark.parametrize("peer", [None, ("", 0), ("testclient", 50000), ("/run/app.sock", 0)])
def test_a_peer_without_an_address_is_trusted_with_nothing(
    addresses: ClientAddresses, peer: tuple[str, int] | None
) -> None:
    assert addresses.of(peer, ["198.51.100.1"]) == UNKNOWN
    assert limit_key(UNKNOWN) == UNKNOWN


def test_a_bounded_number_of_hops_is_read(addresses: ClientAddresses) -> None:
    own = [f"10.0.1.{number}" for number in range(MAX_HOPS)]
    assert addresses.of(HAPROXY, [", ".join(["198.51.100.1", *own[1:]])]) == "198.51.100.1"
    assert addresses.of(HAPROXY, [", ".join(["198.51.100.1", *own])]) == own[0]
    assert addresses.of(HAPROXY, ["198.51.100.1", *own]) == own[0]
    assert addresses.of(HAPROXY, ["198.51.100.1," * 500_000 + "10.0.0.9"]) == "198.51.100.1"


hops = st.one_of(
    st.text(max_size=80),
    st.ip_addresses().map(str),
    st.from_regex(r"\A\[?[0-9a-f:.%]{0,50}\]?(:[0-9]{0,6})?\Z"),
    st.sampled_from(["10.0.0.2", "fd00::2", "unknown", "::ffff:10.0.0.3", "", " "]),
)


@settings(max_examples=300, deadline=None)
@given(
    peer=st.one_of(st.none(), st.tuples(hops, st.integers(0, 65535))),
    headers=st.lists(st.one_of(st.text(max_size=200), st.lists(hops, max_size=25).map(",".join)), max_size=5),
)
def test_whatever_comes_the_answer_is_one_readable_address(peer: tuple[str, int] | None, headers: list[str]) -> None:
    addresses = ClientAddresses(PROXIES)
    client = addresses.of(peer, headers)
    if client != UNKNOWN:
        parsed = ipaddress.ip_address(client)
        assert str(parsed) == client
        assert getattr(parsed, "ipv4_mapped", None) is None
    # A key is no longer than an address, and is stable.
    assert limit_key(client) == limit_key(limit_key(client).partition("/")[0])
    assert len(limit_key(client)) <= 43


@settings(max_examples=200, deadline=None)
@given(client=st.ip_addresses(v=4).filter(lambda a: a not in ipaddress.ip_network("10.0.0.0/8")), forged=st.text())
def test_nothing_a_client_writes_moves_what_our_proxy_appended(client: ipaddress.IPv4Address, forged: str) -> None:
    addresses = ClientAddresses(["10.0.0.0/8"])
    assert addresses.of(("10.0.0.1", 1), [forged, f"{client}, 10.0.0.2"]) == str(client)
    assert addresses.of(("10.0.0.1", 1), [f"{forged},{client}"]) == str(client)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("no address", UNKNOWN),
    ],
)
def test_ipv6_shares_by_network(address: str, key: str) -> None:
    assert limit_key(address) == key


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.0/33", "proxy.internal", "10.0.0.1/8", "", "10.0.0.0-10.0.0.9", "*", "fd00::/129", "1", "10.0.0.1:80"],
)
def test_an_entry_that_cannot_be_read_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="neither an address nor a network") as caught:
        ClientAddresses(["10.0.0.1", entry])
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize("entry", ["0.0.0.0/0", "::/0", "::ffff:0:0/96", "0.0.0.0/0.0.0.0"])
def test_trusting_everyone_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="trusts so many"):
        ClientAddresses([entry])


def test_networks_of_mapped_addresses_mean_the_ipv4_network() -> None:
    addresses = ClientAddresses([" ::ffff:10.0.0.0/104 ", "::ffff:192.0.2.1"])
    assert addresses.of(("10.200.0.1", 1), ["198.51.100.1, 192.0.2.1"]) == "198.51.100.1"
    assert addresses.of(("11.0.0.1", 1), ["198.51.100.1"]) == "11.0.0.1"
