"""Joins the cluster of a running service, for commands that work beside it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from serve_app.cli.serve_api import one_line
from serve_app.cli.train import fail

CONNECT_S = 3.0
ANSWER_S = 30.0
"""Longest wait for one answer of a deployment."""

Address = Annotated[
    str, typer.Option(envvar="RAY_ADDRESS", help="The service's cluster: . .nilm/serve-env.sh sets it.")
]
Application = Annotated[str, typer.Option(help="Name of the Serve application.")]


def expect_answer(address: str) -> None:
    """Ends the command with one sentence when nothing answers where the cluster is to be."""
    expect_address(address)
    if silence := silence_at(address):
        fail(silence)


def expect_address(address: str) -> None:
    """Ends the command with one sentence when nobody has said where the cluster is."""
    if not address:
        fail("no cluster: start the service (nilm run), then: . .nilm/serve-env.sh  or give --address")


def silence_at(address: str) -> str | None:
    """A sentence for people when nothing answers there now."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError):
        return f"nothing answers at {address}: is the service running? `. .nilm/serve-env.sh` tells where"
    return None


@contextmanager
def joined(address: str) -> Iterator[str]:
    """Within it this process is a driver of the cluster at `address`; gives the URL of its dashboard.

    Ends the command with one sentence when it cannot be one.
    Ray itself would try for half a minute, and tell in ten lines.
    """
    expect_answer(address)
    # Ray's parts tell of every step; what a person needs to know of them comes back as a failure.
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    # Threads of Serve's handles outlive the connection; what they still ask must not start a cluster of its own.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    logging.disable(logging.WARNING)
    import ray  # noqa: PLC0415 - it takes seconds to import

    try:
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        fail(f"the cluster at {address} does not let us in: {one_line(str(error)) or type(error).__name__}")
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        # Nor shall they tell of it.
        logging.disable(logging.CRITICAL)
        ray.shutdown()


class NoAnswer(Exception):
    """A deployment did not answer; the text is the kind of failure."""


def answer_of(method: Any, *arguments: object) -> Any:
    """What a deployment says to one call of its handle's `method`. Raises `NoAnswer`."""
    from ray.exceptions import RayError  # noqa: PLC0415 - it takes seconds to import
    from ray.serve.exceptions import RayServeException  # noqa: PLC0415

    try:
        return method.remote(*arguments).result(timeout_s=ANSWER_S)
    except (TimeoutError, RayError, RayServeException) as lost:
        raise NoAnswer(type(lost).__name__) from lost


def deployments_of(application: str) -> set[str]:
    """The names of its deployments; ends with one sentence when no such application runs."""
    from ray import serve  # noqa: PLC0415 - it takes seconds to import

    status = serve.status().applications.get(application)
    if status is None:
        fail(f"no application {application!r} runs on this cluster")
    return set(status.deployments)
