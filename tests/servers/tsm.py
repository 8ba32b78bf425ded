"""InfluxDB's real storage engine: Debian's influxd (1.6) with nginx before it, which maps the write route of v2.

The engine and the line protocol are those of InfluxDB 2 OSS; the routes, tokens and Flux are not there. Rows are read
back in InfluxQL, past our code.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from serve_app.cli.ports import free_port
from tests.servers.nginx import configuration, find_nginx
from tests.servers.packages import PartsMissing, apt_install

START_TIMEOUT_S = 60.0
DATABASES = ("predictions", "raw")

_INFLUXD_CONF = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{http_port}"
  log-enabled = false
"""
_V2_WRITE = """
  client_max_body_size 32m;
  client_body_buffer_size 1m;
  map $arg_precision $v1_precision {{ default $arg_precision; us u; }}
  server {{
    listen 127.0.0.1:{port};
    location = /api/v2/write {{
      proxy_request_buffering off;
      proxy_pass http://127.0.0.1:{http_port}/write?db=$arg_bucket&precision=$v1_precision;
    }}
    location = /ping {{ proxy_pass http://127.0.0.1:{http_port}/ping; }}
    location = /health {{ default_type application/json; return 200 '{{"name":"influxdb","status":"pass"}}'; }}
  }}
"""


class TsmServer:
    """influxd and nginx in a folder of their own. Raises PartsMissing where they cannot be had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if _influxd() is None or find_nginx() is None:
            apt_install(["influxdb", "nginx-light"])
        influxd, nginx = _influxd(), find_nginx()
        if influxd is None or nginx is None:
            raise PartsMissing("influxd or nginx is not where Debian puts it")
        self._influxd = influxd
        ports: set[int] = set()
        while len(ports) < 3:
            ports.add(free_port())
        self._port, self._http_port, rpc_port = ports
        values = {"folder": folder, "port": self._port, "http_port": self._http_port, "rpc_port": rpc_port}
        (folder / "influxd.conf").write_text(_INFLUXD_CONF.format(**values))
        (folder / "nginx.conf").write_text(configuration(folder, _V2_WRITE.format(**values)))
        self._engine: subprocess.Popen[bytes] | None = None
        self.start()
        command = [str(nginx), "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "nginx.log")]
        self._nginx = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait(f"{self.url}/ping")

    @property
    def url(self) -> str:
        """Of the write route."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the engine on what its folder holds."""
        log = (self._folder / "influxd.log").open("ab")
        command = [str(self._influxd), "-config", str(self._folder / "influxd.conf")]
        self._engine = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait(f"http://127.0.0.1:{self._http_port}/ping")

    def kill(self) -> None:
        """SIGKILL to the engine; nginx then answers 502."""
        if self._engine is not None:
            self._engine.send_signal(signal.SIGKILL)
            self._engine.wait()
            self._engine = None

    def stop(self) -> None:
        """End both."""
        self.kill()
        self._nginx.terminate()
        self._nginx.wait()

    def clear(self) -> None:
        """Empty databases."""
        for name in DATABASES:
            self.ask(f'DROP DATABASE "{name}"')
            self.ask(f'CREATE DATABASE "{name}"')

    def rows(self, database: str, measurement: str) -> list[dict[str, Any]]:
        """Every point, as {"tags": ..., "fields": ..., "time_ns": ...}."""
        result = self.ask(f'SELECT * FROM "{measurement}" GROUP BY *', database)  # noqa: S608 - a name of ours
        found = []
        for series in result.get("series", []):
            for values in series["values"]:
                fields = dict(zip(series["columns"], values, strict=True))
                time_ns = fields.pop("time")
                found.append({"tags": series["tags"], "fields": fields, "time_ns": time_ns})
        return found

    def ask(self, statement: str, database: str = "") -> dict[str, Any]:
        """One statement of InfluxQL."""
        reply = httpx.post(
            f"http://127.0.0.1:{self._http_port}/query",
            data={"q": statement, "db": database, "epoch": "ns"},
            timeout=60,
            trust_env=False,
        )
        reply.raise_for_status()
        # Python reads the engine's integers exactly; times have 19 digits.
        result = dict(json.loads(reply.text)["results"][0])
        if "error" in result:
            raise AssertionError(result["error"])
        return result

    def _wait(self, url: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if httpx.get(url, timeout=5, trust_env=False).status_code == 204:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > end:
                raise AssertionError(f"no answer at {url}: {(self._folder / 'influxd.log').read_text()[-2000:]}")
            time.sleep(0.05)


def _influxd() -> Path | None:
    found = shutil.which("influxd")
    return Path(found) if found else None
