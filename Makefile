# Everything a checkout needs. `make help` lists the targets.
#
# PYTHON       interpreter that makes .venv, 3.11 or newer
# TEST_JOBS    processes that run the test files (default 3, for two cores: the distributed tests often wait)
# TORCH_INDEX  further package index for torch, e.g. the one with CPU builds (default: none, the plain build)

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
TEST_JOBS ?= 3

VENV := .venv
STAMP := $(VENV)/.installed
# One thread: the tests' models are too small for two to share, and waiting for one another costs more than it gives.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=disabled \
            TOKENIZERS_PARALLELISM=false DS_ACCELERATOR=cpu

.PHONY: help shell demo data check test test-slow test-lowest test-newest fuzz clean-venv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "variables: PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) TEST_JOBS=$(TEST_JOBS)"

shell: $(STAMP) ## open a shell in which python is that of .venv
	@echo "python is $(VENV)/bin/python here; leave with exit. In your own shell: source $(VENV)/bin/activate"
	@exec bash --rcfile <(echo "[ -f ~/.bashrc ] && . ~/.bashrc; . $(VENV)/bin/activate") -i

demo: $(STAMP) ## read, compress and answer with a small model
	$(VENV)/bin/python scripts/demo.py

data: $(STAMP) ## generate data that needs no download; state which public data sets are ready
	$(VENV)/bin/python scripts/make_data.py

check: $(STAMP) ## lint, format, types, links
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python scripts/check_links.py

test: $(STAMP) ## fast tests: CPU, no network
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile

test-slow: $(STAMP) ## tests that need real backbones (downloads 1.3 GB)
	$(VENV)/bin/python scripts/get_backbone.py
	$(VENV)/bin/python scripts/get_backbone.py qwen25_coder_0_5b
	$(TEST_ENV) $(VENV)/bin/python -m pytest -m slow

# Versions: tests/requirements.py. They show whether the ranges of pyproject.toml still hold.
test-lowest: ## fast tests with the lowest versions that pyproject.toml admits, in .venv-lowest
test-newest: ## fast tests with the newest versions of the index, ignoring upper bounds, in .venv-newest
test-lowest test-newest: test-%:
	test -x .venv-$*/bin/pip || $(PYTHON) -m venv .venv-$*
	$(PYTHON) tests/requirements.py $* > .venv-$*/requirements.txt
	.venv-$*/bin/python -m pip install --upgrade -r .venv-$*/requirements.txt
	.venv-$*/bin/python -m pip install --no-deps -e .
	@rm -rf build breviary.egg-info
	@touch .venv-$*/.installed
	$(MAKE) test VENV=.venv-$*

fuzz: $(STAMP) ## random configurations, data files and run folders: an hour or two
	$(TEST_ENV) $(VENV)/bin/python -m tests.fuzz --configurations 2000 --data 5000 --folders 500

clean-venv: ## remove .venv
	rm -rf $(VENV)

# Editable: the checkout is added to Python's path, no package is copied. What pip leaves in the tree is removed.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: PYTHON=$(PYTHON): no such interpreter"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "error: $(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test]'
	@rm -rf build breviary.egg-info
	@# On all cores, which pip cannot. It fails for files that packages hold for other Pythons, which is no error.
	@$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true
	@touch $@
