# Two commands do everything, set-up included: `make demo` and `make test`.
#
# Both make their own virtual environment in $(VENV) the first time, and again only when
# pyproject.toml, the locked versions or the kernel's C source change. Nothing outside this folder
# is touched. Wanted: Python 3.11 or newer, a C compiler, and pip's usual way to a package index.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.podlift
ARGS ?=
PYTHON ?=
TAG ?= podlift:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' agent/__init__.py)
export PYTHON
# Where it is set, as in many containers, every run of ours compiles all of its modules: 0.4 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench docs image lock setup clean

help: ## show this help
	@echo "podlift moves Velero's pod volumes into restic repositories on S3."
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "Start with 'make demo'. Variables: PYTHON (which Python makes $(VENV)),"
	@echo "CC (which C compiler), TAG (the image's name), ARGS (as in make test"
	@echo "ARGS='tests/chunker -x' or make demo ARGS='--megabytes 60 --keep')."

demo: $(READY) ## back up, change, back up again and restore a sample volume, and compare
	@$(BIN)/podlift demo $(ARGS)

test: $(READY) ## run every test (with ARGS: only those), say what was left out, and a verdict
	@$(BIN)/python .ci/verdict.py $(ARGS)

lint: $(READY) ## check format, style, types, and which room imports which
	@failed=; check() { echo "== $$*"; "$(BIN)/$$@" || failed="$$failed, $$*"; }; \
	    check ruff format --check . ; check ruff check . ; check mypy ; check lint-imports --no-cache ; \
	    if [ -n "$$failed" ]; then echo; echo "Verdict: NOT GOOD (see above):$${failed#,}."; exit 1; fi
	@echo && echo "Verdict: GOOD: format, style, types and imports are clean."

format: $(READY) ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

bench: $(READY) ## measure, side by side with what we compare with (3 minutes; on a quiet machine)
	@failed=; for script in benchmarks/bench_*.py; do \
	    echo "== $$script"; \
	    PYTHONPATH=. $(BIN)/python "$$script" --quick || failed="$$failed, $$script"; \
	done; \
	if [ -n "$$failed" ]; then echo; echo "Verdict: NOT HELD (see above):$${failed#,}."; exit 1; fi
	@echo && echo "Verdict: held; benchmarks/README.md says how to read the figures."

docs: $(READY) ## make docs/configuration.md and the pictures of demo, status and dashboard anew
	@$(BIN)/python -m tests.docs.configuration && $(BIN)/python -m tests.docs.picture && \
	    $(BIN)/python -m tests.docs.dashboard

image: ## build the container image with docker, podman or buildah
	@.ci/image $(TAG)

lock: ## pin every dependency anew into .ci/constraints*.txt (ARGS=--upgrade: newest versions)
	@set -e; python=$$(PYTHON=$${PYTHON:-python3.11} .ci/find-python); \
	    folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	    echo "== pip-tools in a throw-away virtual environment; this takes minutes"; \
	    "$$python" -m venv "$$folder" && "$$folder/bin/python" -m pip install -q pip-tools && \
	    "$$folder/bin/python" .ci/lock.py $(ARGS)

setup: $(READY) ## make the virtual environment and nothing else
	@echo "ready: $(BIN)/podlift --help"

clean: ## remove the virtual environment and everything that was generated
	rm -rf $(VENV) build dist ./*.egg-info chunker/*.so agent/*/*.so .coverage .coverage.* \
	    .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find agent chunker tests benchmarks .ci -name __pycache__ -type d -prune -exec rm -rf {} +

KERNELS := $(wildcard chunker/*.[ch] agent/*/*.[ch])

$(READY): pyproject.toml $(KERNELS) .ci/constraints.txt .ci/setup .ci/find-python
	@.ci/setup $(VENV)
	@touch $@
