# Every target does its own set-up; a second run of it takes a second.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
VENV := .venv/bin

.PHONY: help run test test-fast test-other coverage check bench setup lock

help:
	@echo "make run     everything on this machine, at http://127.0.0.1:8080"
	@echo "make test    every test; nothing is mocked"
	@echo "make coverage   every test, and the lines that none of them ran"
	@echo "make test-fast   tests in this process alone, on SQLite: a minute, while you work"
	@echo "make test-other   what depends on the interpreter, with another Python that is there"
	@echo "make check   format, lint, strict types, import contracts"
	@echo "make bench   what Pupitre costs, against libvirt, websockify and the bare databases"
	@echo "make lock    new lock files from pyproject.toml and package.json"

run:
	@scripts/setup run
	exec $(VENV)/pupitre up

setup:
	@scripts/setup test

check:
	@scripts/setup check
	set -x
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports

test:
	@scripts/setup test
	$(VENV)/pytest $(ARGS)

test-fast:
	@scripts/setup test
	$(VENV)/pytest -q -m "not guest and not browser and not server and not program and not slow" tests/unit $(ARGS)

coverage:
	@scripts/setup test
	$(VENV)/pytest --cov --cov-report=term:skip-covered $(ARGS)

# What needs neither guests nor a browser nor a database server: those are programs of their own, whatever Python
# starts them. With all of them it would not fit into twenty minutes beside `make test`.
test-other:
	@scripts/setup test-other
	[ ! -d .venv-other ] || .venv-other/bin/pytest -m "not guest and not browser and not slow and not server" $(ARGS)

bench:
	@scripts/setup bench
	$(VENV)/python -m bench start --count 20 --json
	$(VENV)/python -m bench console --json
	$(VENV)/python -m bench commands --database all --clients 64 --seconds 10 --json
	$(VENV)/python -m bench status --desktops 1000 --changes 10 --json
	$(VENV)/python -m bench status --desktops 10000 --changes 10 --json
	$(VENV)/python -m bench crash --kills 50 --json

lock:
	@scripts/setup check
	compile="$(VENV)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-strip-extras"
	$$compile --no-emit-index-url pyproject.toml -o requirements/run.lock
	$$compile --no-emit-index-url pyproject.toml --group dev -o requirements/dev.lock
	$$compile --no-emit-index-url --group build -o requirements/build.lock
	PATH="$$PWD/$(VENV):$$PATH" npm install --package-lock-only --ignore-scripts --no-audit --no-fund --omit-lockfile-registry-resolved
