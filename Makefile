# `make demo` and `make test` do all their set-up themselves: a virtual environment, pinned versions.
PYTHON ?= python3
BIN := .venv/bin
# two workers of one thread each are faster on two cores than one worker of two threads; glibc keeps freed memory
# each takes whole files in their order, so that what a module sets up is made once
PYTEST := OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check format lint types layers site matrix clean

demo: .venv/installed
	$(BIN)/poise demo

test: .venv/installed
	$(PYTEST)

check: format lint types layers site test

format: .venv/installed
	$(BIN)/ruff format --check .

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

layers: .venv/installed
	$(BIN)/lint-imports --no-cache

# a link to nowhere, within the pages or to a heading, fails
site: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# not in CI: each environment takes minutes and some GB, and is removed
matrix: .venv/installed
	$(BIN)/python benchmarks/matrix.py

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("poise needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	# without their needs: adv-lib's visdom is for plots, torchattacks holds requests at a version of 2020
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps adv-lib torchattacks
	@touch $@

clean:
	rm -rf .venv demo report site
