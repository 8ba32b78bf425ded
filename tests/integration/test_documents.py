"""Every shell block of README and docs runs against the running service; every path and target they name exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.service import ADMIN_TOKEN, ROOT, SECRET, Service

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.integration
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_shell_block_runs(document: Path, service: Service, tmp_path: Path) -> None:
    blocks = BLOCK.findall(document.read_text())
    (tmp_path / ".nilm").symlink_to(service.data_dir)
    shutil.copy(service.config, tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NILM_URL": service.url,
        "SUPABASE_JWT_SECRET": SECRET,
        "TOKEN": service.token(),
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    environment.pop("NILM_DATA_DIR", None)
    assert blocks, f"{document.name} shows no command"
    for block in blocks:
        # --fail: a refusal must fail the block, not only print itself.
        script = "set -euo pipefail\n" + block.replace("curl -s ", "curl -s --fail ")
        done = subprocess.run(
            ["bash", "-c", script], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip() or "TOKEN=" in block


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_point_at_files_and_console_lines_at_make_targets(document: Path) -> None:
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = [
        line.split()[1] for block in CONSOLE.findall(text) for line in block.splitlines() if line.startswith("make ")
    ]
    assert set(used) <= targets
