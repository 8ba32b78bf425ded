"""What ships: the image, the Railway service, the example environment. Parsed here, because no test can build them."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from dotenv import dotenv_values
from fastapi.routing import APIRoute

from deployments.registry_source import REGISTRY_VARIABLE
from deployments.tracing import EXPORTER_VARIABLE
from serve_app.routes import health
from serve_app.settings import Settings, SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = {"serve_app", "deployments", "models", "configs"}
SECRET_NAMES = re.compile(r"SECRET|TOKEN|KEY|PASSWORD")


@pytest.fixture(scope="module")
def dockerfile() -> list[dict[str, Any]]:
    parser = DockerfileParser(fileobj=(ROOT / "Dockerfile").open("rb"), cache_content=True)
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


@pytest.fixture(scope="module")
def example() -> dict[str, str | None]:
    return dotenv_values(ROOT / ".env.example")


def values(steps: list[dict[str, Any]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def position(steps: list[dict[str, Any]], instruction: str, text: str) -> int:
    return next(i for i, s in enumerate(steps) if s["instruction"] == instruction and text in s["value"])


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_container_does_not_run_as_root(dockerfile: list[dict[str, Any]]) -> None:
    assert values(dockerfile, "USER")[-1] == "nilm"
    assert "useradd --system --uid 10001" in values(dockerfile, "RUN")[0]
    assert position(dockerfile, "USER", "nilm") < position(dockerfile, "CMD", "nilm")


def test_the_healthcheck_asks_for_liveness_at_the_configured_port(dockerfile: list[dict[str, Any]]) -> None:
    check = values(dockerfile, "HEALTHCHECK")[0]
    program = json.loads(check[check.index("[") :])
    assert "/live" in program[-1]
    assert "os.environ['PORT']" in program[-1]
    compile(program[-1], "HEALTHCHECK", "exec")


def test_signals_reach_the_service(dockerfile: list[dict[str, Any]]) -> None:
    assert json.loads(values(dockerfile, "ENTRYPOINT")[0]) == ["tini", "--"]
    assert json.loads(values(dockerfile, "CMD")[0]) == ["nilm", "run"]
    assert values(dockerfile, "STOPSIGNAL") == ["SIGTERM"]


def test_the_image_is_a_production_one_that_listens_on_every_interface(dockerfile: list[dict[str, Any]]) -> None:
    environment = " ".join(values(dockerfile, "ENV"))
    for setting in ("ENV=production", "PORT=8000", "NILM_HOST=0.0.0.0", "NILM_DATA_DIR=/data"):
        assert setting in environment


def test_no_secret_is_baked_in(dockerfile: list[dict[str, Any]]) -> None:
    for value in values(dockerfile, "ENV") + values(dockerfile, "ARG"):
        assert not SECRET_NAMES.search(value), f"{value} would stay in the image's history"
    copied = " ".join(values(dockerfile, "COPY")).split()
    assert "." not in copied, "COPY . would bring whatever lies around"
    assert not any(name.startswith(".env") for name in copied)


def test_torch_has_a_layer_of_its_own_below_the_code(dockerfile: list[dict[str, Any]]) -> None:
    torch = position(dockerfile, "RUN", "torch==")
    dependencies = position(dockerfile, "RUN", "requirements.txt")
    code = [
        i for i, s in enumerate(dockerfile) if s["instruction"] == "COPY" and set(s["value"].split()) & CODE_FOLDERS
    ]
    assert torch < dependencies < min(code)
    assert len(code) == len(CODE_FOLDERS)
    pin = next(line for line in pyproject()["project"]["dependencies"] if line.startswith("torch"))
    assert f'"{pin}"' in dockerfile[torch]["value"], "the image and pyproject.toml must agree on one torch"


def test_everything_the_image_copies_exists_and_is_not_ignored(dockerfile: list[dict[str, Any]]) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for value in values(dockerfile, "COPY"):
        for name in value.split()[:-1]:
            assert (ROOT / name).exists(), name
            assert not any(fnmatch.fnmatch(name, pattern) for pattern in ignored if not pattern.startswith("#"))


def test_what_is_private_or_large_stays_out_of_the_build() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {".git", ".venv", ".nilm", ".env", ".env.*", "**/__pycache__", "tests"} <= ignored


def test_railway_builds_this_dockerfile_and_waits_for_readiness() -> None:
    railway = tomllib.loads((ROOT / "railway.toml").read_text())
    assert railway["build"]["builder"] == "DOCKERFILE"
    assert (ROOT / railway["build"]["dockerfilePath"]).is_file()
    assert railway["deploy"]["healthcheckPath"] == "/ready"
    assert railway["deploy"]["numReplicas"] == 1, "the embedded store has one writer"
    assert railway["deploy"]["drainingSeconds"] >= 60
    for pattern in railway["build"]["watchPatterns"]:
        assert (ROOT / pattern.removesuffix("/**")).exists(), pattern


def test_every_setting_is_in_the_example(example: dict[str, str | None]) -> None:
    assert {name.upper() for name in Settings.model_fields} <= set(example)


def test_the_example_has_no_variable_that_nothing_reads(example: dict[str, str | None]) -> None:
    known = {name.upper() for name in Settings.model_fields} | {REGISTRY_VARIABLE, EXPORTER_VARIABLE}
    assert set(example) - known == {"PORT", "NILM_HOST", "DRAIN_DELAY_S"}


def test_the_example_itself_is_refused_in_production_for_every_placeholder(
    example: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in example.items():
        monkeypatch.setenv(name, value or "")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    placeholders = {name for name, value in example.items() if "changeme" in (value or "")}
    secrets = {name for name in example if SECRET_NAMES.search(name)}
    assert secrets <= placeholders, "no secret of the example may look like a usable one"
    for name in placeholders:
        assert name in str(refused.value)


def test_no_environment_file_but_the_example_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in tracked if Path(name).name.startswith(".env")] == [".env.example"]


def test_ci_runs_what_a_developer_runs() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in script
    assert script.rstrip().splitlines()[-1] == "exec make test"
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


@pytest.mark.parametrize("target", ["help", "run", "test", "bench", "clean"])
def test_make_lists_its_targets(target: str) -> None:
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"make {target}" in listed.stdout


def test_make_says_what_is_missing_when_there_is_no_fitting_python(tmp_path: Path) -> None:
    result = subprocess.run(
        ["make", "run", "PYTHON=", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "needs Python 3.11 or 3.12" in result.stderr


def test_the_scrape_configuration_asks_the_route_that_exists_with_a_credential() -> None:
    document = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())
    job = next(one for one in document["scrape_configs"] if one["job_name"] == "nilm-serve")
    assert job["metrics_path"] in {route.path for route in health.router.routes if isinstance(route, APIRoute)}
    assert job["authorization"]["credentials_file"]
    served = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["http_options"]
    assert job["static_configs"][0]["targets"] == [f"{served['host']}:{served['port']}"]
