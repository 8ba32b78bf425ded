"""Installs Debian packages that the real servers of the tests need, and says what to do where that is impossible."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import NoReturn

import pytest

INSTALL_TIMEOUT_S = 240
LOCKED_TIMEOUT_S = 120


class PartsMissing(Exception):
    """A real part is not on this machine and could not be installed; the text says which and why."""


def apt_install(packages: list[str]) -> None:
    """Installs them as root on Debian. Raises PartsMissing."""
    names = ", ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PartsMissing(f"not installed: {names} (as root on Debian they would be installed now)")
    _in_turn(["apt-get", "update"], "the package lists")
    _in_turn(["apt-get", "install", "--yes", "--no-install-recommends", *packages], names)


def _in_turn(command: list[str], what: str) -> None:
    """apt-get works for one at a time; another test process, or the machine itself, may be at it."""
    give_up_s = time.monotonic() + LOCKED_TIMEOUT_S
    while True:
        try:
            return install(command, what)
        except PartsMissing as missing:
            if "Could not get lock" not in str(missing) or time.monotonic() > give_up_s:
                raise
            time.sleep(1.0)


def install(command: list[str], what: str) -> None:
    """Runs an installer. Raises PartsMissing."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PartsMissing(f"installing {what} took longer than {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise PartsMissing(f"could not install {what}: {error.stderr.decode(errors='replace')[-300:]}") from None


def do_without(missing: PartsMissing) -> NoReturn:
    """Skips the tests of a part that a person's machine has not; in CI (`CI` is set) that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(str(missing))
