"""Every Flux text we have, through the real parser and type checker; and hostile strings in every parameter."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.analytics.spans import DAY_NS, HOUR_NS, MINUTE_NS, QUARTER_NS, SECOND_NS, Span
from deployments.contracts import KeyedRequest
from deployments.stores import flux, open_history, open_store
from deployments.stores.flux import FluxQuery
from tests.servers.packages import PartsMissing, do_without, install

CHECKER = Path(__file__).parents[1] / "servers" / "flux_checker.mjs"
PACKAGE = "@influxdata/flux-lsp-node@0.8.40"
START_NS = 1_769_904_000 * 10**9
HOSTILE = (
    'x" or true or r.building_id == "y',
    '") |> drop(columns: ["_value"]) //',
    "${1 + 1}",
    "\\",
    '\\"',
    "new\nline",
    "größe 電気 🔌",
    "' OR '1'='1",
    "*/ /*",
    "",
)


def queries() -> dict[str, FluxQuery]:
    found: dict[str, FluxQuery] = {
        "recall_key": flux.recall_key("b", "abc", START_NS, START_NS + DAY_NS),
        "journal": flux.journal("b", START_NS, START_NS + DAY_NS, 10),
        "request instants": flux.request_instants("b", "r", START_NS, START_NS + DAY_NS, 10),
        "prediction fields": flux.prediction_fields("b", "home", START_NS),
    }
    for step_ns in (SECOND_NS, MINUTE_NS, QUARTER_NS, HOUR_NS):
        span = Span.covering(START_NS, START_NS + DAY_NS, step_ns)
        found |= dict(zip((f"mains {step_ns}", f"mains count {step_ns}"), flux.mains("b", "home", span), strict=True))
        for appliance in (None, "kettle"):
            names = (f"predictions {appliance} {step_ns}", f"predictions count {appliance} {step_ns}")
            found |= dict(zip(names, flux.predictions("b", "home", span, appliance), strict=True))
    for building in (None, "home"):
        names = (f"last reading {building}", f"last prediction {building}")
        found |= dict(zip(names, flux.latest("b", "c", building, START_NS, START_NS + 1), strict=True))
    return found


def with_parameters(query: FluxQuery, leave_out: str = "") -> str:
    """As InfluxDB runs it: the bound values before the text."""
    lines = [f"{name} = {_literal(value)}" for name, value in query.parameters.items() if name != leave_out]
    return "\n".join([*lines, query.text])


def _literal(value: object) -> str:
    if isinstance(value, timedelta):
        return f"{value // timedelta(microseconds=1)}us"
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("flux")
    try:
        if shutil.which("npm") is None:
            raise PartsMissing("npm is not installed; it brings the Flux type checker")  # noqa: TRY301
        install(["npm", "install", "--ignore-scripts", "--prefix", str(folder), PACKAGE], PACKAGE)
    except PartsMissing as missing:
        do_without(missing)

    def check(sources: list[str]) -> list[dict[str, Any]]:
        document = json.dumps({"sources": sources})
        command = ["node", str(CHECKER), str(folder)]
        done = subprocess.run(command, input=document, capture_output=True, text=True, check=True, timeout=120)
        return list(json.loads(done.stdout))

    return check


def test_every_text_of_the_module_is_among_those_checked() -> None:
    texts = {value for name, value in vars(flux).items() if name.isupper() and not name.startswith("_")}
    assert texts == {query.text for query in queries().values()}


def test_every_text_is_valid_flux_with_its_parameters(checker: Any) -> None:
    found = queries()
    verdicts = checker([with_parameters(query) for query in found.values()])
    assert [name for name, verdict in zip(found, verdicts, strict=True) if not verdict["valid"]] == []


def test_the_checker_sees_a_parameter_that_is_missing_or_of_the_wrong_type(checker: Any) -> None:
    sources = []
    for query in queries().values():
        sources += [with_parameters(query, leave_out=name) for name in query.parameters]
        wrong = {name: 1 if isinstance(value, str) else "text" for name, value in query.parameters.items()}
        sources.append(with_parameters(FluxQuery(query.text, {**query.parameters, **wrong})))
    sources.append('from(bucket: "b") |> range(start: -1h) |> aggregateWindow(evry: 1m, fn: mean)')
    sources.append('from(bucket: "b") |> nothing_of_that_name()')
    assert [verdict["valid"] for verdict in checker(sources)] == [False] * len(sources)


def test_what_reaches_the_server_is_our_text_and_one_literal_a_value(influx_backend: Any, checker: Any) -> None:
    """Not one character of a value is in the text, whatever it holds; and the text parses to the same tree."""
    history = open_history(influx_backend.config())
    store = open_store(influx_backend.config())
    span = Span.covering(START_NS, START_NS + DAY_NS, QUARTER_NS)
    for text in HOSTILE:
        history.mains(text, span)
        history.predictions(text, span, text)
        history.latest((text,))
        history.predictions_of(text, span.start_ns, span.stop_ns)
        key = (text.encode().hex() + "0" * 64)[:64]
        store.recall(KeyedRequest(key, "f", None, time.time() + 5))
    sent = [one for one in influx_backend.server.requests() if "document" in one]
    assert len(sent) == len(HOSTILE) * 8
    known = {query.text for query in queries().values()}
    values: set[object] = set()
    for one in sent:
        assert one["document"]["query"] in known
        for statement in one["document"]["extern"]["body"]:
            literal = statement["assignment"]["init"]
            assert literal["type"] in ("StringLiteral", "IntegerLiteral", "DurationLiteral")
            values.add(literal.get("value") if literal["type"] == "StringLiteral" else None)
    assert set(HOSTILE) <= values
    history.close()
    store.close()


def test_a_hostile_string_stays_one_literal_in_the_real_parser(checker: Any) -> None:
    query = flux.mains("b", "home", Span.covering(START_NS, START_NS + DAY_NS, QUARTER_NS))[0]
    plain = checker([with_parameters(query)])[0]["tree"]
    safe = [text for text in HOSTILE if "${" not in text]
    verdicts = checker([with_parameters(FluxQuery(query.text, {**query.parameters, "building_id": t})) for t in safe])
    for text, verdict in zip(safe, verdicts, strict=True):
        assert verdict["valid"], text
        assert len(_statements(verdict["tree"])) == len(_statements(plain))
        [value] = [one["init"]["value"] for one in _statements(verdict["tree"]) if _name(one) == "building_id"]
        assert value == text


def _statements(tree: Any) -> list[dict[str, Any]]:
    files = tree.get("files", [tree])
    return list(files[0]["body"])


def _name(statement: dict[str, Any]) -> str:
    return str(statement.get("id", {}).get("name", ""))
