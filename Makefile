# One small Makefile. `make demo` and `make test` do all set-up themselves: virtual environment, torch, the package.
#   PYTHON  interpreter (3.10 or newer) the environment is made with
#   TORCH   what pip installs as torch: the CPU build where no NVIDIA card answers, PyPI's own wheel where one does
#   JOBS    files of tests that run at a time
#   EXTRAS  extras of the package to install, such as EXTRAS=dev,train,eval
PYTHON ?= python3
GPU := $(shell nvidia-smi -L 2> /dev/null | head -n 1)
# The rest of torch's dependencies comes with the package, so only torch itself is looked for on PyTorch's index.
TORCH ?= torch==2.13.0 $(if $(GPU),,--no-deps --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 20)
EXTRAS ?= dev
PYTEST_ARGS ?=
JOBS ?= 2

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed-$(EXTRAS)
# One thread a job: threads that wait for each other spin.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install format format-check lint type pytest test check fuzz soak test-slow test-oldest test-gpu demo smoke docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install torch, the package (editable) and its extras into it

# The stamp is newer than the list of dependencies exactly when the environment is up to date.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("gpa needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	@$(PIP) --version > /dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); } \
	  || { rm -rf $(VENV); echo "no venv: on Debian and Ubuntu run  sudo apt install python3-venv"; exit 1; }
	@echo "installing $(TORCH) (the first time this downloads a few hundred MB)"
	@$(PIP) install $(TORCH)
	@echo "installing gpa-audio[$(EXTRAS)]"
	@$(PIP) install $(if $(OLDEST),--constraint $(OLDEST)) --editable ".[$(EXTRAS)]"
	@touch $@

format: $(STAMP)  ## Rewrite the sources in the house format
	$(BIN)/ruff format gpa tests
	$(BIN)/ruff check --fix gpa tests

format-check: $(STAMP)  ## Check the format
	$(BIN)/ruff format --check gpa tests

lint: $(STAMP)  ## Check style, complexity and size limits
	$(BIN)/ruff check gpa tests

type: $(STAMP)  ## Check types
	$(BIN)/mypy

pytest: $(STAMP)  ## Run the tests: on a CPU, without network
	$(PYTEST)

test: format-check lint type pytest  ## Everything CI checks

check: test  ## Same as test

fuzz: $(STAMP)  ## Try random bad input on every surface for ten minutes, and print the counts
	$(BIN)/python tests/fuzzing.py

soak: $(STAMP)  ## Let 1000 clients of the server leave and 1000 stay, and print memory, files and threads
	OMP_NUM_THREADS=1 GPA_CLIENTS=1000 $(BIN)/python -m pytest -q -s tests/test_disconnects.py

test-slow: $(STAMP)  ## Run the tests that take over five seconds each
	$(PYTEST) -m "slow and not gpu and not network"

# The lowest version that pyproject.toml allows of each package the tests use, as pip's constraints.
LOWEST = import re; text = open("pyproject.toml").read(); \
  parts = [text.split(f"\n{name} = [")[1].split("\n]")[0] for name in ("dependencies", "serve", "dev")]; \
  print(*sorted({f"{n}=={v}" for part in parts for n, v in re.findall(r"\"([\w.-]+)>=([\d.]+)", part)}), sep="\n")

test-oldest:  ## Run the tests with the oldest packages that pyproject.toml allows, in .venv-oldest
	@mkdir -p .venv-oldest
	@$(PYTHON) -c '$(LOWEST)' > .venv-oldest/oldest.txt
	$(MAKE) VENV=.venv-oldest OLDEST=.venv-oldest/oldest.txt TORCH="$$(grep ^torch== .venv-oldest/oldest.txt)" pytest

test-gpu: $(STAMP)  ## Run the tests that need an accelerator
	$(PYTEST) -m gpu

demo: $(STAMP)  ## Speak, transcribe and convert a voice with the shipped model
	$(BIN)/python -m gpa demo

smoke: $(STAMP)  ## Check this machine and the installed command
	$(BIN)/gpa --help > /dev/null
	$(BIN)/gpa doctor

# What a user of the library meets; '!' leaves out the modules inside. pdoc does not read what stands under TYPE_CHECKING.
API = gpa '!gpa.' gpa.audio '!gpa.audio.' gpa.audio.decoding gpa.audio.arrays \
  gpa.audio.saving gpa.errors gpa.compose gpa.codec '!gpa.codec.' gpa.codec.base gpa.prompt.tasks \
  gpa.engine.request gpa.engine.scheduler gpa.models.speechop.pipeline_speechop

docs: $(STAMP)  ## Check the documentation against the code, and write the API reference to build/api
	$(PYTEST) tests/test_docs.py tests/test_reference.py tests/test_paths_start.py
	$(BIN)/python -W "ignore:Error parsing type annotation" -m pdoc $(API) -o build/api

clean:  ## Remove builds, caches and demo output; keep .venv and runs
	rm -rf build dist *.egg-info demo_out .mypy_cache .ruff_cache .pytest_cache
	find gpa tests -name __pycache__ -type d -prune -exec rm -rf {} +
