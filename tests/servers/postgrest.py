"""Supabase's REST interface from its real parts: PostgreSQL with row-level security, PostgREST, and nginx for the path.

    with SupabaseServer.started() as supabase:      # about three seconds; ends every process it began
        supabase.sql("insert into ...")
        supabase.url, supabase.service_role_key, supabase.user_token(user_id)

Raises PartsMissing (packages.py) when a part cannot be had. As root everything runs as another user, since
PostgreSQL refuses root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from serve_app.cli.ports import free_port
from tests.servers.nginx import configuration
from tests.servers.supabase_parts import find_parts, unprivileged_account

SCHEMA = Path(__file__).with_name("supabase.sql")
MAX_ROWS = 1000
"""Supabase's default."""
START_TIMEOUT_S = 60.0

_POSTGREST_CONF = """\
db-uri = "postgresql://authenticator@/postgres?host={folder}"
db-schemas = "public"
db-anon-role = "anon"
db-pool = 10
db-max-rows = {max_rows}
jwt-secret = "@{folder}/jwks.json"
server-unix-socket = "{folder}/postgrest.sock"
"""
_REST = """
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location /rest/v1/ {{ proxy_pass http://unix:{folder}/postgrest.sock:/; }}
  }}
"""


class SupabaseServer:
    """The running parts. `kill_rest` and `pause_rest` break it, `start_rest` and `resume_rest` mend it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._account = unprivileged_account()
        parts = find_parts()
        self._postgres_bin, self._nginx = parts.postgres_bin, parts.nginx
        self._postgrest = folder / "postgrest"
        shutil.copy(parts.postgrest, self._postgrest)  # the cache may be in a home that the other user cannot enter
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._hmac_key = os.urandom(48)
        self._ec_key = ec.generate_private_key(ec.SECP256R1())
        self.url = ""
        self.service_role_key = self._api_key("service_role")
        self.anon_key = self._api_key("anon")

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[SupabaseServer]:
        """A server of its own, empty but for the schema."""
        folder = Path(tempfile.mkdtemp(prefix="sb-"))  # a short path: a socket's has at most 107 characters
        try:
            server = cls(folder)
            try:
                server._start()
                yield server
            finally:
                for name in ("nginx", "postgrest", "postgres"):
                    server._stop(name)
        finally:
            shutil.rmtree(folder)

    def sql(self, statements: str) -> None:
        """Run statements as the database's owner."""
        where = ("--host", str(self._folder), "--username", "postgres")
        self._call("psql", *where, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", stdin=statements)

    def user_token(self, user_id: str) -> str:
        """An access token as Supabase Auth signs it for a browser: ES256, role `authenticated`."""
        claims = {"sub": user_id, "role": "authenticated", "aud": "authenticated", "exp": int(time.time()) + 3600}
        return jwt.encode(claims, self._ec_key, algorithm="ES256")

    def start_rest(self) -> None:
        """Start PostgREST and wait until it has read the schema."""
        self._run("postgrest", self._postgrest, "postgrest.conf")
        headers = {"Authorization": f"Bearer {self.service_role_key}"}
        with httpx.Client(trust_env=False, headers=headers) as client:
            self._wait_until(lambda: client.get(f"{self.url}/rest/v1/buildings?limit=0").status_code == 200)

    def kill_rest(self) -> None:
        """SIGKILL; nginx then answers 502."""
        self._stop("postgrest", signal.SIGKILL)

    def pause_rest(self) -> None:
        """SIGSTOP: connections are taken and nothing is answered."""
        self._running["postgrest"].send_signal(signal.SIGSTOP)

    def resume_rest(self) -> None:
        self._running["postgrest"].send_signal(signal.SIGCONT)

    def _api_key(self, role: str) -> str:
        return jwt.encode({"iss": "supabase", "role": role}, self._hmac_key, algorithm="HS256")

    def _start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        keys = [
            jwt.algorithms.ECAlgorithm.to_jwk(self._ec_key.public_key(), as_dict=True) | {"alg": "ES256"},
            jwt.algorithms.HMACAlgorithm.to_jwk(self._hmac_key, as_dict=True) | {"alg": "HS256"},
        ]
        for name, content in (
            ("jwks.json", json.dumps({"keys": keys})),
            ("postgrest.conf", _POSTGREST_CONF.format(folder=self._folder, max_rows=MAX_ROWS)),
            ("nginx.conf", configuration(self._folder, _REST.format(folder=self._folder, port=port))),
        ):
            (self._folder / name).write_text(content, encoding="utf-8")
        if self._account:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, self._account["user"], self._account["group"])
        data = self._folder / "data"
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        self._call("initdb", "--pgdata", str(data), *options)
        settings = {"unix_socket_directories": self._folder, "listen_addresses": "", "fsync": "off"}
        self._run("postgres", self._postgres_bin / "postgres", "-D", data, *(f"--{k}={v}" for k, v in settings.items()))
        self._wait_until(lambda: self._answers("select 1"))
        self.sql(SCHEMA.read_text(encoding="utf-8"))
        self._run("nginx", self._nginx, "-p", self._folder, "-c", "nginx.conf", "-e", "nginx.log")
        self.start_rest()

    def _answers(self, statement: str) -> bool:
        with suppress(subprocess.CalledProcessError):
            self.sql(statement)
            return True
        return False

    def _call(self, program: str, *arguments: str, stdin: str = "") -> None:
        """One of PostgreSQL's programs, to its end."""
        command = [self._postgres_bin / program, *arguments]
        subprocess.run(
            command, input=stdin.encode(), check=True, capture_output=True, cwd=self._folder, **self._account
        )

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(httpx.HTTPError):
                if ready():
                    return
            dead = [name for name, process in self._running.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                output = [path.read_text(errors="replace")[-500:] for path in self._folder.glob("*.out")]
                raise RuntimeError(f"the Supabase server did not start; ended: {dead}; {output}")
            time.sleep(0.02)

    def _run(self, name: str, *command: str | Path) -> None:
        with (self._folder / f"{name}.out").open("ab") as output:
            self._running[name] = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self._folder, **self._account
            )

    def _stop(self, name: str, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown, and an end to the others."""
        process = self._running.pop(name, None)
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
