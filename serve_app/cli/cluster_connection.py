"""Joins the cluster of a running service for the time of one command."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.cli.train import fail

CONNECT_S = 3.0


@contextmanager
def connected(address: str) -> Iterator[str]:
    """Inside, Ray is connected to `address`; gives the URL of its dashboard. Ends the command when it cannot be.

    Ray itself would try for half a minute, and tell in ten lines.
    """
    if not address:
        fail("no cluster: start the service (nilm run), then: . .nilm/serve-env.sh  or give --address")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError):
        fail(f"nothing answers at {address}: is the service running? `. .nilm/serve-env.sh` tells where")
    # Ray's parts tell of every step, and of handles that end with us; what a person needs comes back as a failure.
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    logging.disable(logging.ERROR)
    import ray  # noqa: PLC0415 - it takes seconds to import

    try:
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        fail(f"the cluster at {address} does not let us in: {str(error).splitlines()[0]}")
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()
