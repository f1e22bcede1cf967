# The first target is what `make` alone does: tell what there is.
FLEET ?= 200
SECONDS ?= 0
TEST_PROCESSES ?= 3
ATTACK_SECONDS ?= 120
FUZZ_SECONDS ?= 60
RUNS ?= 1
BENCH_FLAGS ?=
PREFIX ?= /opt/fleetwatt

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS = -qq --disable-pip-version-check --require-hashes
.DEFAULT_GOAL := help
.PHONY: help run test check format lock broker pooler browser install clean bench docs attack faults fuzz audit

help: ## what can be made here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

run: .venv/ready broker ## try it: private broker and database, daemon, simulated fleet (FLEET=200 SECONDS=0)
	@FLEET=$(FLEET) SECONDS=$(SECONDS) .venv/bin/python -m dev run

test: .venv/ready broker pooler ## all tests, against a real broker, a real database, a real pooler and a real browser
	@.venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

check: .venv/ready ## style, types and the rules that are tests
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/python -m pytest -q tests/test_rules.py

format: .venv/ready ## put the code in the house's form
	@.venv/bin/ruff check --fix --quiet
	@.venv/bin/ruff format

bench: .venv/ready broker ## measure it for forty minutes, and write a page with a plot (BENCH_FLAGS=--quick: a few minutes)
	@.venv/bin/python -m dev bench $(BENCH_FLAGS)

docs: .venv/ready ## write docs/openapi.json and docs/postman.json anew from the routes
	@.venv/bin/python -m api openapi > docs/openapi.json
	@.venv/bin/python -m api postman > docs/postman.json

attack: .venv/ready broker ## schemathesis against the sidecar, from its own document (ATTACK_SECONDS=120)
	@SCHEMATHESIS_SECONDS=$(ATTACK_SECONDS) .venv/bin/python -m pytest -q tests/api/test_schemathesis.py

faults: .venv/ready broker ## every fault of the matrix under load, and a table of what came of it (RUNS=1)
	@.venv/bin/python -m dev faults --runs $(RUNS)

fuzz: .venv/ready ## coverage-guided fuzzing of the decoder and the packet handling (FUZZ_SECONDS=60 for each)
	@.venv/bin/python -m dev fuzz --seconds $(FUZZ_SECONDS)

audit: .venv/ready ## known vulnerabilities of the locked packages; fails too where it could not find out
	@.venv/bin/python -m dev.audit

lock: .venv/ready ## pin anew what is installed, within the bounds of setup.cfg
	@.venv/bin/pip-compile --quiet --upgrade --strip-extras --generate-hashes --allow-unsafe --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock setup.cfg
	@.venv/bin/pip-compile --quiet --upgrade --strip-extras --generate-hashes --allow-unsafe --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --extra dev --constraint requirements.lock --output-file requirements-dev.lock setup.cfg

broker: ## install Mosquitto from the system's packages where it is missing
	@deploy/install-package mosquitto

pooler: ## install pgbouncer from the system's packages where it is missing: some tests need it
	@deploy/install-package pgbouncer

browser: ## install Chromium from the system's packages where it is missing: the tests of the pages need it
	@deploy/install-package chromium

install: ## install the daemon as a systemd service under PREFIX (as root; see docs/systemd.md)
	@PREFIX=$(PREFIX) PYTHON=$(PYTHON) deploy/install

clean: ## remove what was made here, the private database included
	@rm -rf .venv .fleetwatt .schemathesis build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/ready: requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "fleetwatt needs Python 3.11 or newer, and no python3 was found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fleetwatt needs Python 3.11 or newer; $(PYTHON) is older. Say which with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing the Python packages into .venv ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install $(PIP_FLAGS) -r requirements-dev.lock
	@touch $@
