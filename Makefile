# What a person or CI does with a checkout. `make` alone lists it.
#
# A plain install brings the PyTorch build that the package index holds, on Linux the one for NVIDIA GPUs (several
# gigabytes). Without a GPU, first point pip at PyTorch's own index of CPU wheels (its install page names the
# address), by the usual pip setting PIP_EXTRA_INDEX_URL, and ask for that build: make run TORCH=torch==2.13.0+cpu

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run test bench clean

VENV := .venv
PIP := $(VENV)/bin/python -m pip
TORCH ?=

# The first interpreter that pyproject.toml accepts; empty when there is none.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)

help:  ## List what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp  ## Start the service here and keep it running until Ctrl-C (options: ARGS="--port 9000")
	@exec $(VENV)/bin/nilm run $(ARGS)

test: $(VENV)/dev.stamp  ## Lint, formatting, types, then every test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@# addopts' -q and this -v give one line a file and the full count at the end. A running service is alone.
	$(VENV)/bin/pytest -v -rfEs -n 2 --dist loadgroup tests/unit tests/contract $(ARGS)
	$(VENV)/bin/pytest -v -rfEs --durations=12 tests/integration tests/fault $(ARGS)

bench: $(VENV)/bench.stamp  ## Measure what a request costs, here and in other systems; wants an idle machine and wrk
	$(VENV)/bin/python -m tests.bench.serving --markdown docs/performance.md $(ARGS)

clean:  ## Remove the virtual environment and every cache; the data in .nilm stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis nilm_serve.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than pyproject.toml only when the dependencies may have changed: a second start installs nothing.
$(VENV)/run.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing nilm-serve into $(VENV); the first time takes a few minutes."
	$(PIP) install $(TORCH) -e '.[tools,backfill]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing nilm-serve and its test tools into $(VENV); the first time takes a few minutes."
	$(PIP) install $(TORCH) -e '.[dev]'
	@touch $(VENV)/run.stamp $@

$(VENV)/bench.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing nilm-serve and what it is compared with into $(VENV); the first time takes a few minutes."
	$(PIP) install $(TORCH) -e '.[bench]'
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nilm-serve needs Python 3.11 or 3.12, and found neither python3.11, python3.12" \
		"nor a python3 of these versions. Install one, or name it: make run PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"install its venv module (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
