# `make` lists what there is. Everything a target needs it installs itself (CONTRIBUTING.md, first hour).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
KILLS ?= 40
CASES ?= 3000
BENCH ?= hl7
PROCESSES ?= 2
PYTEST := $(BIN)/pytest
SIDE_BY_SIDE := $(PYTEST) -n $(PROCESSES) --dist worksteal

.PHONY: help demo test lint unit wire hostile crash safety bench peers clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ris-broker needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(VENV)/ready  ## a broker with a simulated RIS, CT and EHR; ARGS=--once ends by itself
	$(BIN)/broker demo $(ARGS)

test: lint peers unit wire hostile crash safety  ## everything that must be green

lint: $(VENV)/ready  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests start an Orthanc of their own: the one that comes with its package is not to run.
peers:  ## foreign tools of the tests: DCMTK, OpenSSL, Orthanc
	@PATH="$$PATH:/usr/sbin"; \
	for tool in findscu dcmsend openssl Orthanc; do command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dcmtk openssl orthanc >/dev/null || exit 1; \
	    case "$$missing" in *Orthanc*) \
	      { service orthanc stop; update-rc.d orthanc disable; } >/dev/null 2>&1 || :;; esac; \
	  else echo "the tests need$$missing: apt-get install dcmtk openssl orthanc" >&2; exit 1; fi; fi

unit: $(VENV)/ready  ## rules, tables, services on both databases, docs
	$(SIDE_BY_SIDE) tests/test_architecture.py tests/unit tests/service tests/docs

wire: $(VENV)/ready peers  ## real sockets, foreign clients, exam stories, both databases
	$(SIDE_BY_SIDE) tests/wire tests/flow

hostile: $(VENV)/ready peers  ## peers that lie, stall, flood; random messages
	$(PYTEST) tests/hostile

crash: $(VENV)/ready  ## kill -9 at every durable effect, then KILLS=40 times in a storm; nothing acknowledged is lost
	$(PYTEST) -rP --show-capture=stdout tests/crash --kills $(KILLS)

safety: $(VENV)/ready  ## CASES=3000 invented studies: none is filed by a rule under a patient or order that it disagrees with
	$(PYTEST) tests/safety --cases $(CASES)

bench: $(VENV)/ready peers  ## figures beside others, BENCH=hl7, worklist or journal, ARGS=--help; never part of the tests
	$(BIN)/python -m bench.$(BENCH) $(ARGS)

clean:  ## remove the environment
	rm -rf $(VENV)
