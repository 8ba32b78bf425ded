"""The catalogue of errors and how each becomes a reply."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from serve_app.problems import FieldError, Problem, Problems, from_framework_status, problem_response


def test_every_kind_has_its_own_code() -> None:
    codes = [kind.value.code for kind in Problems]
    assert len(codes) == len(set(codes)) == len({kind.value for kind in Problems}) == len(Problems)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    assert all(kind.value.title for kind in Problems)


@pytest.mark.parametrize("kind", Problems)
@pytest.mark.parametrize("retry_after_s", [None, 0, -3, 7])
def test_the_reply_of_every_kind(kind: Problems, retry_after_s: int | None) -> None:
    problem = Problem(kind, "because", [FieldError("/window/3", "is negative")], retry_after_s=retry_after_s)
    response = problem_response(problem, instance="/infer", request_id="r-1")
    assert response.status_code == kind.value.status
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body) == {
        "type": f"urn:nilm-serve:problem:{kind.value.code}",
        "title": kind.value.title,
        "status": kind.value.status,
        "detail": "because",
        "instance": "/infer",
        "code": kind.value.code,
        "request_id": "r-1",
        "retryable": kind.value.retryable,
        "errors": [{"pointer": "/window/3", "detail": "is negative"}],
    }
    assert ("retry-after" in response.headers) == (kind.value.status in (409, 503))
    if kind.value.status in (409, 503):
        assert response.headers["retry-after"] == str(7 if retry_after_s == 7 else 1)
        assert kind.value.retryable
    assert ("www-authenticate" in response.headers) == (kind.value.status == 401)


def test_of_the_clients_errors_only_those_of_time_may_pass_by_themselves() -> None:
    retryable = {kind for kind in Problems if kind.value.retryable and kind.value.status < 500}
    assert retryable == {Problems.RATE_LIMITED, Problems.BODY_TOO_SLOW, Problems.IDEMPOTENCY_KEY_IN_FLIGHT}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Problems.BAD_REQUEST),
        (404, Problems.NOT_FOUND),
        (405, Problems.METHOD_NOT_ALLOWED),
        (413, Problems.BODY_TOO_LARGE),
        (415, Problems.UNSUPPORTED_MEDIA_TYPE),
        (418, Problems.BAD_REQUEST),
        (422, Problems.VALIDATION),
        (500, Problems.INTERNAL),
        (502, Problems.INTERNAL),
    ],
)
def test_the_frameworks_errors_have_a_kind(status: int, kind: Problems) -> None:
    problem = from_framework_status(status, {"Allow": "GET"})
    assert problem.kind is kind
    assert problem.headers == {"Allow": "GET"}


def test_a_problem_reads_as_its_code_and_detail() -> None:
    assert str(Problem(Problems.NOT_FOUND, "nothing")) == "not_found: nothing"


async def test_the_document_names_the_media_type_of_problems(kit: SimpleNamespace) -> None:
    async with kit.start() as service:
        document = (await service.client.get("/openapi.json")).json()
    refused = document["paths"]["/infer"]["post"]["responses"]
    assert set(refused) >= {"400", "401", "403", "404", "408", "409", "413", "415", "422", "429", "431", "503"}
    for status, response in refused.items():
        expected = "application/json" if status == "200" else "application/problem+json"
        assert list(response["content"]) == [expected]
    assert document["paths"]["/infer"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/live"]["get"]
