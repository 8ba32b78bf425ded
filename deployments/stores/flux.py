"""Every Flux query there is. The texts are fixed: values are bound as typed parameters, never written into them.

`influxdb-client` sends the parameters beside the text (`extern`), where a string stays one literal whatever it holds.
Instants are integers of nanoseconds, because the client's datetimes end at microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

Parameter = str | int | float | bool


@dataclass(frozen=True, slots=True)
class FluxQuery:
    """A text of this module and the values of all parameters it names."""

    text: str
    parameters: dict[str, Parameter]


RECALL_KEY = """
from(bucket: bucket)
  |> range(start: time(v: first_ns), stop: time(v: last_ns + 1))
  |> filter(fn: (r) => r._measurement == "idempotent_reply" and r.shard == shard)
  |> filter(fn: (r) => r._time == time(v: first_ns) or r._time == time(v: last_ns))
"""


def recall_key(bucket: str, shard: str, first_ns: int, last_ns: int) -> FluxQuery:
    """The fields of one Idempotency-Key at its two possible instants, `first_ns` < `last_ns`."""
    parameters: dict[str, Parameter] = {
        "bucket": bucket,
        "shard": shard,
        "first_ns": first_ns,
        "last_ns": last_ns,
    }
    return FluxQuery(RECALL_KEY, parameters)
