# `make demo` and `make test` set up an environment from nothing and run.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint completeness bench docs clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch .venv/ready

demo: .venv/ready  ## convert, check and explain the trained digits model; then convert ViT-B
	$(BIN)/python -m fxgrad.demo --out demo-out

test: .venv/ready lint  ## everything CI runs
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fxgrad

completeness: .venv/ready  ## measure every architecture, write docs/completeness.md
	$(BIN)/python bench/architectures.py --out docs/completeness.md

bench: .venv/ready  ## conversion time against torch.export's own
	$(BIN)/python bench/conversion.py

docs: .venv/ready  ## regenerate docs/rules.md from rules/
	$(BIN)/python docs/generate_rules.py

clean:
	rm -rf .venv build dist demo-out
