"""What `nilm run` checks before it starts anything: every refusal is one sentence and exit code 2.

Owns the reading of the Serve configuration, the port and the data directory's lock. Starts no process.
"""

from __future__ import annotations

import ast
import difflib
import errno
import fcntl
import importlib.util
import os
import socket
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from deployments.registry_source import registry_source
from models.registry import RegistryError
from serve_app.cli.ports import LOOPBACK
from serve_app.cli.rollout_file import RolloutFile, RolloutFileError

DEFAULT_PORT = 8000
"""Serve's own default, used when neither `--port`, `PORT` nor the configuration says otherwise."""

OUR_MODULE = "serve_app."
LOCK_FILE_NAME = "run.lock"
ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - what a container has to listen on to be reached


class PreflightRefused(Exception):
    """Nothing was started; the message is the whole story, for a person."""


@dataclass(frozen=True)
class ServeConfig:
    """A checked serve_config.yaml: `document` is what the Serve API gets, with the port and host applied."""

    path: Path
    document: dict[str, object]
    port: int
    host: str

    @property
    def local_url(self) -> str:
        """Where this machine reaches the service."""
        return f"http://{LOOPBACK if self.host == ALL_INTERFACES else self.host}:{self.port}"

    @property
    def appliances(self) -> list[str]:
        """The appliances that the applications' `args` name."""
        applications: Any = self.document.get("applications", [])
        return [name for a in applications for name in (a.get("args") or {}).get("appliances", [])]


def load_serve_config(path: Path, port: int | None, host: str) -> ServeConfig:
    """Read and check the configuration. Raises PreflightRefused with the first thing that is wrong."""
    document = _parse(path)
    http_options = document.get("http_options") or {}
    if not isinstance(http_options, dict):
        raise PreflightRefused(f"{path}: http_options must be a mapping.")
    chosen_port = port if port is not None else http_options.get("port", DEFAULT_PORT)
    if not isinstance(chosen_port, int) or not 1 <= chosen_port <= 65535:
        raise PreflightRefused(f"Port {chosen_port} is not a port: choose one from 1 to 65535.")
    document["http_options"] = {**http_options, "host": host, "port": chosen_port}
    _check_schema(path, document)
    return ServeConfig(path=path, document=document, port=chosen_port, host=host)


def check_rollout(path: Path) -> None:
    """Refuse versions that are not registered, or plans that make no sense, with the line of each.

    Of a configuration with our application in it; another application has no rollouts.
    """
    applications: Any = _parse(path)["applications"]
    if not any(str(one.get("import_path", "")).startswith(OUR_MODULE) for one in _mappings(applications)):
        return
    try:
        file = RolloutFile.read(path)
        file.plans(registry_source().registry())
    except (RolloutFileError, RegistryError) as error:
        raise PreflightRefused(str(error)) from error


def _parse(path: Path) -> dict[str, object]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PreflightRefused(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PreflightRefused(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict) or not document.get("applications"):
        raise PreflightRefused(f"{path} names no application under `applications:`.")
    return document


def _check_schema(path: Path, document: dict[str, object]) -> None:
    # Imported here: Ray takes over a second to import, which `nilm --help` should not pay for.
    from pydantic import BaseModel, ValidationError  # noqa: PLC0415
    from ray.serve import schema as serve  # noqa: PLC0415

    try:
        config = serve.ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise PreflightRefused(f"{path} is not a Serve configuration: {where}: {first['msg']}.") from error
    known: dict[str, tuple[object, type[BaseModel]]] = {
        "the document": (document, serve.ServeDeploySchema),
        "http_options": (document["http_options"], serve.HTTPOptionsSchema),
    }
    for application, given in zip(config.applications, _mappings(document["applications"]), strict=True):
        known[f"application {application.name}"] = (given, serve.ServeApplicationSchema)
        for deployment in _mappings(given.get("deployments") or []):
            known[f"deployment {deployment.get('name')}"] = (deployment, serve.DeploymentSchema)
    for where, (mapping, schema) in known.items():
        _check_spelling(path, where, mapping, schema.model_fields)
    for application in config.applications:
        check_import_path(application.import_path, path.resolve().parent)


def _mappings(entries: object) -> list[dict[str, object]]:
    """The entries of a list that the schema has already found to be a list of mappings."""
    return entries if isinstance(entries, list) else []


def _check_spelling(path: Path, where: str, mapping: object, known: Collection[str]) -> None:
    """Refuse a key that Serve does not know. Serve ignores it, so a misspelt limit would silently not hold."""
    for key in mapping if isinstance(mapping, dict) else {}:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise PreflightRefused(f"{path}: {where} has an unknown key {key}{hint}")


def check_import_path(import_path: str, folder: Path) -> None:
    """Refuse an `import_path` whose module is not found or does not define the name.

    The module is read, not run: it imports torch, and a replica will run it anyway. `folder` is searched first,
    as it is for the Ray processes.
    """
    module_name, _, attribute = import_path.replace(":", ".").rpartition(".")
    sys.path.insert(0, str(folder))
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        found = None
    finally:
        sys.path.remove(str(folder))
    if found is None or found.origin is None:
        raise PreflightRefused(f"import_path {import_path}: there is no module {module_name}.")
    if not found.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise PreflightRefused(
            f"import_path {import_path}: {found.origin} line {error.lineno}: {error.msg}."
        ) from error
    if attribute not in _top_level_names(tree):
        raise PreflightRefused(f"import_path {import_path}: {module_name} defines no {attribute}.")


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            case ast.Assign() | ast.AnnAssign():
                names.update(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
    return names


def check_port_free(port: int, host: str) -> None:
    """Refuse a port that another program listens on, before Ray spends ten seconds to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run may linger in TIME_WAIT; they do not stop a server from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise PreflightRefused(
                    f"Port {port} needs more rights than you have: choose one above 1023."
                ) from error
            raise PreflightRefused(
                f"Port {port} is already in use: stop the program that listens there, or choose another with --port."
            ) from error


def lock_data_directory(data_dir: Path) -> TextIO:
    """Take the data directory for this run; the lock ends with the returned file, or with this process."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK_FILE_NAME).open("a+", encoding="ascii")
    except OSError as error:
        raise PreflightRefused(f"Cannot write to the data directory {data_dir}: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise PreflightRefused(
            f"Another `nilm run`{f' (process {owner})' if owner else ''} uses the data directory {data_dir}: "
            "stop it, or choose another with --data-dir."
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
