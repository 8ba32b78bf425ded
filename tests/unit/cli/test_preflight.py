"""What `nilm run` refuses before it starts anything, and in which words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import preflight
from serve_app.cli.main import app
from serve_app.cli.ports import LOOPBACK, free_port
from serve_app.cli.preflight import (
    PreflightRefused,
    check_import_path,
    check_port_free,
    load_serve_config,
    lock_data_directory,
)

CONFIG = """
http_options: {{host: 0.0.0.0, port: 8123, request_timeout_s: 5}}
applications:
  - name: tiny
    route_prefix: /
    import_path: {import_path}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny_app.py").write_text("from os import path as build_path\n\n\ndef build(args):\n    return None\n")
    (tmp_path / "broken_app.py").write_text("def build(:\n")
    (tmp_path / "serve_config.yaml").write_text(CONFIG.format(import_path="tiny_app:build"))
    return tmp_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server((LOOPBACK, 0)) as server:
        yield int(server.getsockname()[1])


def test_the_port_option_and_the_host_replace_the_configurations_and_the_rest_stays(folder: Path) -> None:
    config = load_serve_config(folder / "serve_config.yaml", 9001, LOOPBACK)
    assert config.document["http_options"] == {"host": LOOPBACK, "port": 9001, "request_timeout_s": 5}
    assert config.local_url == "http://127.0.0.1:9001"


def test_without_an_option_the_configurations_port_counts(folder: Path) -> None:
    config = load_serve_config(folder / "serve_config.yaml", None, preflight.ALL_INTERFACES)
    assert config.port == 8123
    assert config.local_url == "http://127.0.0.1:8123"


def test_without_either_the_port_is_serves_default(folder: Path) -> None:
    path = folder / "serve_config.yaml"
    path.write_text("applications:\n  - {name: tiny, import_path: 'tiny_app:build'}\n")
    assert load_serve_config(path, None, LOOPBACK).port == 8000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("applications: [", "is not YAML"),
        ("[]", "names no application"),
        ("applications: []", "names no application"),
        ("http_options: 7\napplications: [{name: a, import_path: 'tiny_app:build'}]", "must be a mapping"),
        (
            "http_options: {port: 99999}\napplications: [{name: a, import_path: 'tiny_app:build'}]",
            "99999 is not a port",
        ),
        ("applications: [{name: a, import_path: 'tiny_app:build', replicas: 2}]", "replicas"),
        ("http_options: {prot: 1}\napplications: [{name: a, import_path: 'tiny_app:build'}]", "did you mean port"),
        (
            "applications: [{name: a, import_path: 'tiny_app:build', deployments: [{name: d, num_replica: 2}]}]",
            "deployment d has an unknown key num_replica; did you mean num_replicas",
        ),
        ("proxy_location: Nowhere\napplications: [{name: a, import_path: 'tiny_app:build'}]", "proxy_location"),
        ("applications: [{name: a, import_path: 'no_such_app:build'}]", "no module no_such_app"),
        ("applications: [{name: a, import_path: 'tiny_app:biuld'}]", "tiny_app defines no biuld"),
        ("applications: [{name: a, import_path: 'broken_app:build'}]", "line 1"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(folder: Path, text: str, says: str) -> None:
    path = folder / "serve_config.yaml"
    path.write_text(text)
    with pytest.raises(PreflightRefused, match=says) as refused:
        load_serve_config(path, None, LOOPBACK)
    assert "\n" not in str(refused.value)


def test_an_imported_or_assigned_name_is_a_builder_too(folder: Path) -> None:
    (folder / "tiny_app.py").write_text("from os import getcwd as build\napplication: object = build\n")
    check_import_path("tiny_app:build", folder)
    check_import_path("tiny_app.application", folder)


def test_a_taken_port_is_refused_by_its_number(taken_port: int) -> None:
    with pytest.raises(PreflightRefused, match=f"Port {taken_port} is already in use"):
        check_port_free(taken_port, LOOPBACK)


def test_two_runs_cannot_share_a_data_directory(tmp_path: Path) -> None:
    with lock_data_directory(tmp_path / "data"), pytest.raises(PreflightRefused, match="Another `nilm run`"):
        lock_data_directory(tmp_path / "data")
    lock_data_directory(tmp_path / "data").close()


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(PreflightRefused, match="Cannot write to the data directory"):
        lock_data_directory(tmp_path / "data")


@pytest.mark.parametrize("fault", ["config", "port", "lock", "settings"])
def test_the_command_exits_2_with_one_sentence_and_no_traceback(
    folder: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("ENV", "development")
    monkeypatch.setenv("SUPABASE_JWT_SECRET", "short" if fault == "settings" else "s" * 48)
    monkeypatch.setenv("NILM_DATA_DIR", str(folder / "data"))
    config = folder / ("absent.yaml" if fault == "config" else "serve_config.yaml")
    port = taken_port if fault == "port" else free_port()
    lock = lock_data_directory(folder / "data") if fault == "lock" else None
    result = CliRunner().invoke(app, ["run", "--config", str(config), "--port", str(port)])
    if lock is not None:
        lock.close()
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
    assert not (folder / "data" / "ray-start.log").exists(), "Ray must not have been started"


@pytest.mark.parametrize("env", ["production", ""])
def test_production_refuses_placeholders_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch, env: str) -> None:
    monkeypatch.setenv("ENV", env)
    monkeypatch.setenv("SUPABASE_JWT_SECRET", "changeme")
    monkeypatch.setenv("NILM_DATA_DIR", str(folder / "data"))
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "ADMIN_TOKEN", "CORS_ORIGINS", "INFLUX_URL"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(app, ["run", "--config", str(folder / "serve_config.yaml"), "--port", str(free_port())])
    assert result.exit_code == 2
    for name in ("SUPABASE_JWT_SECRET", "SUPABASE_URL", "ADMIN_TOKEN", "CORS_ORIGINS"):
        assert name in result.stderr
    assert not (folder / "data" / "dev-secret").exists(), "production makes no secret of its own"


def test_without_a_port_for_ray_the_command_ends_with_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError("each of the 27 blocks of ports is in use")

    monkeypatch.setenv("ENV", "development")
    monkeypatch.setenv("SUPABASE_JWT_SECRET", "s" * 48)
    monkeypatch.setenv("NILM_DATA_DIR", str(folder / "data"))
    monkeypatch.setattr("serve_app.cli.cluster.reserve_block", none_left)
    result = CliRunner().invoke(app, ["run", "--config", str(folder / "serve_config.yaml"), "--port", str(free_port())])
    assert result.exit_code == 1
    assert "Ray cannot be started: each of the 27 blocks" in result.stderr
    assert "Traceback" not in result.output
