"""Reading Serve's REST API: what counts as failed, and which line of a traceback a person sees."""

from __future__ import annotations

from datetime import date

import httpx
import pytest

from serve_app.cli.serve_api import ServeApi, ServeApiError, one_line

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:nilm:kettle.initialize_and_get_metadata() (pid=1, ip=127.0.0.1)
  File "replica.py", line 1, in initialize
RuntimeError: Traceback (most recent call last):
  File "appliance.py", line 9, in __init__
RuntimeError: weights do not match their sha256
"""


def api_answering(status: int, **body: object) -> ServeApi:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer t0ken"
        return httpx.Response(status, json=body)

    return ServeApi("http://dashboard.test", "t0ken", httpx.MockTransport(answer))


def application(status: str, message: str = "", **deployments: tuple[str, str]) -> dict[str, object]:
    return {
        "name": "nilm",
        "status": status,
        "message": message,
        "deployments": {name: {"status": s, "message": m} for name, (s, m) in deployments.items()},
    }


def test_the_failed_deployment_is_named_with_its_exception() -> None:
    failed = application("DEPLOY_FAILED", "", ingress=("UPDATING", ""), kettle=("DEPLOY_FAILED", TRACEBACK))
    states = api_answering(200, applications={"nilm": failed}).applications()
    assert states is not None
    assert states[0].failure == "deployment kettle cannot start: RuntimeError: weights do not match their sha256"


def test_an_application_that_could_not_be_built_is_named_itself() -> None:
    failed = application("DEPLOY_FAILED", "Deploying app 'nilm' failed with exception:\nValueError: no appliance")
    states = api_answering(200, applications={"nilm": failed}).applications()
    assert states is not None
    assert states[0].failure == "application nilm cannot start: ValueError: no appliance"


@pytest.mark.parametrize("status", ["DEPLOYING", "RUNNING", "UNHEALTHY"])
def test_what_may_still_become_healthy_has_not_failed(status: str) -> None:
    states = api_answering(200, applications={"nilm": application(status)}).applications()
    assert states is not None
    assert states[0].failure is None


def test_a_silent_controller_is_no_status_and_no_failure() -> None:
    assert api_answering(503).applications() is None


def test_a_refused_configuration_says_why() -> None:
    with pytest.raises(ServeApiError, match="Serve refused the configuration"):
        api_answering(400, detail="bad").deploy({})


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("waiting for resources\nmore", "waiting for resources"),
        (TRACEBACK, "RuntimeError: weights do not match their sha256"),
        ("Retrying 2 more time(s). Error:\nValueError: x", "ValueError: x"),
    ],
)
def test_one_line_of_a_message(message: str, line: str) -> None:
    assert one_line(message) == line


def test_no_token_is_no_header_and_what_json_cannot_hold_is_a_sentence() -> None:
    seen: list[httpx.Headers] = []

    def dashboard(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json={"applications": {}})

    assert ServeApi("http://dashboard.test", "", httpx.MockTransport(dashboard)).is_up()
    assert "authorization" not in seen[0]
    with pytest.raises(ServeApiError, match="not JSON"):
        ServeApi("http://dashboard.test", "t", httpx.MockTransport(dashboard)).deploy({"day": date(2026, 1, 1)})
