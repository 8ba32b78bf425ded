"""nginx for one location, with everything it writes in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_CONF = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
}}
"""


def find_nginx() -> Path | None:
    """The program, or None where it is not installed; /usr/sbin is not on everyone's path."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(found) if found else None


def configuration(folder: Path, http: str) -> str:
    """A configuration whose `http` block also holds these directives."""
    return _CONF.format(folder=folder, http=http)
