"""A small interpreter of Flux for the test server: it runs the text it is sent, and knows none of our queries.

The functions are those listed in `_STAGES`. An undefined name and an unused parameter are errors.
https://docs.influxdata.com/flux/v0/spec/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.servers.flux_parser import UNITS_NS, Duration, FluxError, Instant, Parser

Row = dict[str, Any]


@dataclass
class Table:
    """Rows that share the values of their group key."""

    key: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Series:
    """One stored field of one series, as the server's storage gives it: points are (time_ns, value)."""

    bucket: str
    measurement: str
    tags: dict[str, str]
    field_name: str
    points: list[tuple[int, Any]]


class Query:
    """One run of one text."""

    def __init__(self, series: Iterable[Series], parameters: dict[str, Any]) -> None:
        self._series = list(series)
        self._parameters = parameters

    def run(self, text: str, known_strings: frozenset[str]) -> list[Table]:
        """The result's tables. Raises FluxError."""
        parser = Parser(text, known_strings)
        result = self._evaluate(parser.parse(), {})
        unused = set(self._parameters) - parser.names
        if unused:
            raise FluxError(f"refused: unused parameters {sorted(unused)}")
        if not isinstance(result, list):
            raise FluxError("invalid: the query yields no tables")
        return [table for table in result if table.rows]

    def _evaluate(self, tree: Any, scope: Row) -> Any:  # noqa: PLR0911 - one for each kind of tree
        match tree:
            case ("value", value):
                return value
            case ("list", items):
                return [self._evaluate(item, scope) for item in items]
            case ("name", name):
                return self._name(name, scope)
            case ("negative", operand):
                value = self._evaluate(operand, scope)
                return Duration(-value.ns) if isinstance(value, Duration) else -value
            case ("record", properties):
                return {name: self._evaluate(value, scope) for name, value in properties.items()}
            case ("member", operand, name):
                row = self._evaluate(operand, scope)
                if name not in row:
                    raise FluxError(f"invalid: no column {name!r}")
                return row[name]
            case ("binary", operator, left, right):
                return _binary(operator, self._evaluate(left, scope), lambda: self._evaluate(right, scope))
            case ("lambda", name, body):
                return lambda row: self._evaluate(body, {**scope, name: row})
            case ("call", ("name", function), arguments, piped):
                values = {name: self._evaluate(argument, scope) for name, argument in arguments.items()}
                return self._call(function, values, None if piped is None else self._evaluate(piped, scope))
        raise FluxError(f"unsupported: {tree[0]}")

    def _name(self, name: str, scope: Row) -> Any:
        if name in scope:
            return scope[name]
        if name in self._parameters:
            return self._parameters[name]
        if name in _AGGREGATES:
            return _AGGREGATES[name]
        raise FluxError(f"invalid: undefined identifier {name}")

    def _call(self, function: str, arguments: Row, piped: Any) -> Any:
        if function == "time":
            return Instant(int(arguments["v"]))
        if function == "int":
            return arguments["v"].ns if isinstance(arguments["v"], Instant) else int(arguments["v"])
        if function == "from":
            return [one for one in self._series if one.bucket == arguments["bucket"]]
        if function not in _STAGES:
            raise FluxError(f"unsupported: {function}")
        try:
            return _STAGES[function](piped, **arguments)
        except TypeError as error:
            raise FluxError(f"invalid: {error}") from None


def _binary(operator: str, left: Any, right_of: Callable[[], Any]) -> Any:  # noqa: PLR0911 - one an operator
    if operator in ("and", "or"):
        decided = (operator == "or") is bool(left)
        return left if decided else right_of()
    right = right_of()
    if type(left) is not type(right):
        raise FluxError(f"invalid: {type(left).__name__} {operator} {type(right).__name__}")
    match operator:
        case "==":
            return left == right
        case "!=":
            return left != right
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    ordered = (left.ns, right.ns) if isinstance(left, Instant | Duration) else (left, right)
    return {
        "<": ordered[0] < ordered[1],
        "<=": ordered[0] <= ordered[1],
        ">": ordered[0] > ordered[1],
        ">=": ordered[0] >= ordered[1],
    }[operator]


def _range(series: list[Series], *, start: Instant, stop: Instant) -> list[Table]:
    if start.ns >= stop.ns:
        raise FluxError("invalid: cannot query an empty range")
    tables: list[Table] = []
    for one in series:
        key = {"_start": start, "_stop": stop, "_field": one.field_name, "_measurement": one.measurement, **one.tags}
        inside = sorted((ns, value) for ns, value in one.points if start.ns <= ns < stop.ns)
        tables.append(Table(key, [{**key, "_time": Instant(ns), "_value": value} for ns, value in inside]))
    return tables


def _filter(tables: list[Table], *, fn: Callable[[Row], bool]) -> list[Table]:
    return [Table(table.key, [row for row in table.rows if fn(_Missing(row))]) for table in tables]


class _Missing(dict[str, Any]):
    """A row for a predicate: another measurement lacks a tag, which is null and equals nothing."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> Any:
        return ""


def _group(tables: list[Table], *, columns: list[str] = []) -> list[Table]:  # noqa: B006 - only read
    grouped: dict[tuple[Any, ...], Table] = {}
    for table in tables:
        for row in table.rows:
            key = {name: row[name] for name in columns if name in row}
            grouped.setdefault(tuple(key.items()), Table(key)).rows.append(row)
    return list(grouped.values())


def _keep(tables: list[Table], *, columns: list[str]) -> list[Table]:
    return [
        Table(
            {name: value for name, value in table.key.items() if name in columns},
            [{name: value for name, value in row.items() if name in columns} for row in table.rows],
        )
        for table in tables
    ]


def _sort(tables: list[Table], *, columns: list[str], desc: bool = False) -> list[Table]:
    def order(row: Row) -> list[Any]:
        return [row[name].ns if isinstance(row[name], Instant) else row[name] for name in columns]

    return [Table(table.key, sorted(table.rows, key=order, reverse=desc)) for table in tables]


def _limit(tables: list[Table], *, n: int) -> list[Table]:
    return [Table(table.key, table.rows[:n]) for table in tables]


def _map(tables: list[Table], *, fn: Callable[[Row], Row]) -> list[Table]:
    """Columns of the group key that the function leaves as they are stay in it; others must not be among them."""
    mapped: list[Table] = []
    for table in tables:
        rows = [fn(row) for row in table.rows]
        kept = {name: value for name, value in table.key.items() if all(row.get(name) == value for row in rows)}
        mapped.append(Table(kept, rows))
    return mapped


def _aggregate_window(
    tables: list[Table],
    *,
    every: Duration,
    fn: Callable[[list[Any]], Any],
    createEmpty: bool = True,  # noqa: N803 - Flux names it so
    timeSrc: str = "_stop",  # noqa: N803
) -> list[Table]:
    if createEmpty:
        raise FluxError("unsupported: createEmpty")
    results: list[Table] = []
    for table in tables:
        windows: dict[int, list[Any]] = {}
        for row in table.rows:
            if isinstance(row["_value"], str):
                raise FluxError("unsupported input type for mean aggregate: string")
            windows.setdefault(row["_time"].ns // every.ns * every.ns, []).append(row["_value"])
        first, last = table.key["_start"].ns, table.key["_stop"].ns
        rows = []
        for start_ns, values in sorted(windows.items()):
            bounds = {"_start": max(start_ns, first), "_stop": min(start_ns + every.ns, last)}
            rows.append({**table.key, "_time": Instant(bounds[timeSrc]), "_value": fn(values)})
        results.append(Table(table.key, rows))
    return results


def _last(tables: list[Table]) -> list[Table]:
    return [Table(table.key, [max(table.rows, key=lambda row: row["_time"].ns)]) for table in tables if table.rows]


def _first(tables: list[Table]) -> list[Table]:
    return [Table(table.key, [min(table.rows, key=lambda row: row["_time"].ns)]) for table in tables if table.rows]


_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "count": len,
    "min": min,
    "max": max,
}
_STAGES: dict[str, Callable[..., Any]] = {
    "range": _range,
    "filter": _filter,
    "group": _group,
    "keep": _keep,
    "limit": _limit,
    "map": _map,
    "sort": _sort,
    "aggregateWindow": _aggregate_window,
    "first": _first,
    "last": _last,
}


def parameters_of(extern: dict[str, Any] | None) -> dict[str, Any]:
    """The bound values of a request's `extern`, a Flux syntax tree of assignments. Raises FluxError."""
    parameters: dict[str, Any] = {}
    for statement in (extern or {}).get("body", []):
        assignment = statement["assignment"]
        parameters[assignment["id"]["name"]] = _literal(assignment["init"])
    return parameters


def _literal(init: dict[str, Any]) -> Any:
    match init["type"]:
        case "StringLiteral" | "FloatLiteral" | "BooleanLiteral":
            return init["value"]
        case "IntegerLiteral":
            return int(init["value"])
        case "UnaryExpression" if init["operator"] == "-":
            return -_literal(init["argument"])
        case "DurationLiteral":
            return Duration(sum(int(one["magnitude"]) * UNITS_NS[one["unit"]] for one in init["values"]))
        case "ArrayExpression":
            return [_literal(element) for element in init["elements"]]
    raise FluxError(f"unsupported parameter: {init['type']}")


_DATATYPES: dict[type, str] = {
    str: "string",
    float: "double",
    int: "long",
    bool: "boolean",
    Instant: "dateTime:RFC3339",
}


def annotated_csv(tables: list[Table]) -> str:
    """https://docs.influxdata.com/influxdb/v2/reference/syntax/annotated-csv/ with a block for every table."""
    blocks = []
    for number, table in enumerate(tables):
        columns = list(table.rows[0])
        types = [_DATATYPES[type(table.rows[0][name])] for name in columns]
        lines = [
            ["#datatype", "string", "long", *types],
            ["#group", "false", "false", *("true" if name in table.key else "false" for name in columns)],
            ["#default", "_result", "", *("" for _ in columns)],
            ["", "result", "table", *columns],
            *(["", "", str(number), *(_cell(row[name]) for name in columns)] for row in table.rows),
        ]
        blocks.append("".join(",".join(map(_quoted, line)) + "\r\n" for line in lines))
    return "\r\n".join(blocks)


def _cell(value: Any) -> str:
    if isinstance(value, Instant):
        seconds, rest = divmod(value.ns, 10**9)
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) else cell
