# Two commands on a fresh machine: `make demo` and `make test`. Both create what they need in .venv.
PYTHON ?= python3
# The torch to install first: one known to work. On a machine with a CPU wheel of this version at hand pip takes that;
# for another build say so, for example TORCH=torch or TORCH="torch --index-url ...".
TORCH ?= torch==2.13.0
VENV ?= .venv
PY = $(VENV)/bin/python
# Tests wait for processes and services more than they compute, so one more than the cores of a small machine.
JOBS ?= 3
SAMPLES ?= 20000
SITE ?= site
ROOT ?= demo/ecoli
CAMPAIGN ?= campaign

.PHONY: demo test lint types docs dist format bench campaign audit clean

demo: $(VENV)/.demo
	$(PY) -m experiments.demo root=$(ROOT) samples=$(SAMPLES)

test: $(VENV)/.dev
	$(PY) -m pytest -q -n $(JOBS) --dist loadgroup

# Goes on where it was stopped: what passed is in $(CAMPAIGN)/log.jsonl.
campaign: $(VENV)/.dev
	TORCHCELL_CACHE_CAMPAIGN=$(CAMPAIGN) $(PY) -m pytest -q -m campaign

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

# Known holes in what is installed; asks a service on the internet. Licences are a test: tests/system/test_licences.py.
audit: $(VENV)/.dev
	$(PY) -m pip install --quiet pip-audit
	$(VENV)/bin/pip-audit --skip-editable

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --strict --quiet --site-dir $(SITE)

# What is published: source and wheel, with a description that an index can show. .github/workflows/release.yml does it on a tag.
dist: $(VENV)/.dev
	rm -rf dist
	$(PY) -m hatchling build
	$(PY) -m pip install --quiet twine
	$(PY) -m twine check --strict dist/*

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.bench
	$(PY) -m experiments.benchmarks.cache_bench

$(VENV)/.torch:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=python3.11'"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	$(PY) -m pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PY) -m pip install --quiet -e ".[demo,dev]"
	touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml $(VENV)/.dev
	$(PY) -m pip install --quiet -e ".[docs]"
	touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.torch
	$(PY) -m pip install --quiet -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) site demo .pytest_cache .mypy_cache .ruff_cache
