"""Idempotency keys in InfluxDB: how a key becomes one point that is found again without a search.

InfluxDB has no unique index, and a tag with a value for every key would make a series of each. So the key itself says
where its point lies: the first digits name one of 4096 series, the rest an instant of the day it was used. Two keys
that meet at one place overwrite each other (at 10 million keys a day, one pair in a year); the point names its key, so
the loser is merely forgotten early.

A point first says when its request was received, so that a second attempt stores the same points even if the first
one died on the way; the reply joins it, by InfluxDB's merge of fields, after the points it acknowledges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deployments.contracts import Completion, KeyedRequest, StoredReply
from deployments.stores.base import KEY_KEPT_S
from deployments.stores.flux import FluxQuery, recall_key
from deployments.stores.line_protocol import string_field

MEASUREMENT = "idempotent_reply"
_DAY_S = 86_400
_SHARD_DIGITS = 3


def intent_line(request: KeyedRequest, now_s: int) -> bytes:
    """The line that keeps `received_ns` for later attempts."""
    fields = f"key={string_field(request.key)},received_ns={request.received_ns}i,stored_at_s={now_s}i"
    return f"{_series(request.key)} {fields} {_instant_ns(request.key, now_s)}".encode()


def reply_line(completion: Completion, now_s: int) -> bytes:
    """The line that keeps a reply."""
    claim = completion.claim
    fields = (
        f"fingerprint={string_field(claim.fingerprint)},key={string_field(claim.key)}"
        f",reply={string_field(completion.body.decode())},reply_key={string_field(claim.key)},stored_at_s={now_s}i"
    )
    return f"{_series(claim.key)} {fields} {_instant_ns(claim.key, now_s)}".encode()


def recall_query(key: str, bucket: str, now_s: int) -> FluxQuery:
    """Looks where the key's point would lie had it been used today or yesterday."""
    return recall_key(bucket, _shard(key), _instant_ns(key, now_s - _DAY_S), _instant_ns(key, now_s))


@dataclass(frozen=True, slots=True)
class KeyState:
    """What InfluxDB holds of a key."""

    reply: StoredReply | None
    received_ns: int | None


def key_state(key: str, records: Iterable[Mapping[str, object]], now_s: int) -> KeyState:
    """From the records of `recall_query`, one field each; points of other keys and expired ones count as none."""
    points: dict[object, dict[str, object]] = {}
    for record in records:
        points.setdefault(record["_time"], {})[str(record["_field"])] = record["_value"]
    reply: StoredReply | None = None
    received_ns: int | None = None
    for _, fields in sorted(points.items(), key=lambda item: str(item[0])):
        stored_at_s = fields.get("stored_at_s")
        if fields.get("key") != key or not isinstance(stored_at_s, int) or stored_at_s <= now_s - KEY_KEPT_S:
            continue
        if isinstance(fields.get("received_ns"), int) and received_ns is None:
            received_ns = int(str(fields["received_ns"]))
        # Fields of two keys that met here are merged: the reply says itself whose it is.
        if "reply" in fields and fields.get("reply_key") == key:
            reply = StoredReply(str(fields["fingerprint"]), str(fields["reply"]).encode())
    return KeyState(reply, received_ns)


def _series(key: str) -> str:
    return f"{MEASUREMENT},shard={_shard(key)}"


def _shard(key: str) -> str:
    return key[:_SHARD_DIGITS]


def _instant_ns(key: str, now_s: int) -> int:
    midnight_s = now_s // _DAY_S * _DAY_S
    return midnight_s * 10**9 + int(key[_SHARD_DIGITS : _SHARD_DIGITS + 16], 16) % (_DAY_S * 10**9)
