"""The running service against its own OpenAPI document, with requests that schemathesis makes up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.access.development import mint_development_token
from serve_app.access.principal import Role
from tests.integration.service import ADMIN_TOKEN, SECRET, Service

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance"
CHECKS += ",response_schema_conformance,unsupported_method"


@pytest.mark.integration
def test_no_made_up_request_gets_what_the_document_does_not_say(service: Service, tmp_path: Path) -> None:
    token = mint_development_token(SECRET, "tester", 60, "nilm-development", Role.SUPER_ADMIN)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json"]
    command += ["--checks", CHECKS, "--max-examples", "60", "--seed", "7", "--phases", "examples,coverage,fuzzing"]
    command += ["--header", f"Authorization: Bearer {token}", "--header", f"X-Admin-Token: {ADMIN_TOKEN}"]
    command += ["--no-color", "--request-timeout", "20", "--generation-database", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    count = re.search(r"(\d+) generated", done.stdout)
    assert count, done.stdout[-3000:]
    assert int(count[1]) > 300
    print(done.stdout[-1500:])
