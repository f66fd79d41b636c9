# Everything installs what it needs into .venv. Set PYTHON to choose the interpreter (3.11 or later).
# A name on PATH proves nothing (version managers put shims there for versions that are switched off): each is tried.
PYTHON ?= $(shell for v in python3.13 python3.12 python3.11 python3; do \
	$$v -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$v; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.dev-installed
DEMO := $(VENV)/.demo-installed

.PHONY: demo test lint format docs bench bench-advice bench-discovery bench-events bench-failover bench-harmless requirements image help clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)  ## the whole story on this machine: no root, no Docker, no database
	$(BIN)/sidecar demo $(ARGS)

test: $(DEV)  ## all tests; those that need root or a missing program skip and say so
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(DEV)  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)  ## write the pages in docs/ that are made from the code
	$(BIN)/python -m testing.pages
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/test_explain.py -k page

bench: $(DEV)  ## start-up, memory, CPU and request rate of the running service
	$(BIN)/python -m bench.service $(ARGS)

bench-advice: $(DEV)  ## what the advice is worth, beside what others set; needs root
	$(BIN)/python -m bench.advice $(ARGS)

bench-discovery: $(DEV)  ## time to the idle limit, simulated, beside the prior art
	$(BIN)/python -m bench.discovery $(ARGS)

bench-events: $(DEV)  ## what 200 slow readers of /events cost the service and everybody else
	$(BIN)/python -m bench.events $(ARGS)

bench-failover: $(DEV)  ## how exactly outages are timed, beside a poll once a second
	$(BIN)/python -m bench.failover $(ARGS)

bench-harmless: $(DEV)  ## that it harms nobody, counted by a stranger; in part as root
	$(BIN)/python -m bench.harmless $(ARGS)

requirements: $(DEV)  ## pin anew what the image installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/requirements.sh

image:  ## build the image with docker, podman or buildah; see scripts/build-image.sh for BASE and OFFLINE
	scripts/build-image.sh $(ARGS)

clean:  ## remove everything that was made
	rm -rf $(VENV) dist build

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found: install one, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11: set PYTHON to a later one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(DEV): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(DEMO)
