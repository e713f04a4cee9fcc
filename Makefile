# `make run` and `make test` are all a new machine needs: each makes .venv, installs with pip, and works.
# A second call skips the installation until pyproject.toml or constraints.txt changes.
PYTHON ?= python3
BIN := .venv/bin
QUICK ?=

.PHONY: run test test-all lint types results docs unit wheel release notebooks clean help

help:
	@echo "make run     the paper's experiments: results table and HTML report"
	@echo "make test    lint, types, tests and the documentation"
	@echo "make test-all the same with the long studies: before a release"
	@echo "make wheel   sdist and wheel, installed and tried far from the sources"
	@echo "make release everything before an upload, and a stop there"
	@echo "make clean   remove .venv and everything built"

run: .venv/.installed
	$(BIN)/bilevel-rl experiments gridworld --out runs/gridworld $(QUICK)
	$(BIN)/bilevel-rl llm happy-tweets --out runs/happy_tweets
	$(BIN)/bilevel-rl report runs/gridworld runs/happy_tweets --out runs/report.html

test: lint types unit docs

lint: .venv/.installed
	$(BIN)/ruff check src tests examples benchmarks docs/hooks
	$(BIN)/lint-imports

types: .venv/.installed
	$(BIN)/mypy

results: .venv/.installed
	$(BIN)/python docs/hooks/results.py

notebooks: .venv/.installed
	$(BIN)/python docs/hooks/notebooks.py

unit: .venv/.installed results
	$(BIN)/pytest -q --numprocesses auto --dist loadfile --durations=15

test-all: lint types results
	BILEVEL_RL_TESTS_COMPILE=as-users $(BIN)/pytest -q --numprocesses auto --dist loadfile --durations=15 -m ""
	$(MAKE) docs

docs: .venv/.installed results
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel:
	.ci/wheel $(PYTHON)

release: .venv/.installed
	PYTHON=$(PYTHON) .ci/release

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	touch $@

clean:
	rm -rf .venv site runs dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
