# make setup   .venv with everything pinned in constraints.txt; a second call does nothing
# make demo    the whole way on the phantom cohort, into OUT (default: demo)
# make test    ruff, mypy and the tests that need neither minutes nor a GPU
#
# Another build of torch, for a machine with a GPU (start from a clean .venv):
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cu128
#   make setup TORCH=torch==2.12.0 TORCH_INDEX=https://download.pytorch.org/whl/rocm6.4
# and a smaller one for a machine without: TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= demo
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst =,,$(TORCH))

.PHONY: setup demo test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes where nothing is cached)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)' -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps nnunetv2
	touch $@

demo: setup
	$(BIN)/medgen demo $(OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not gpu"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find medgen tests -name __pycache__ -type d -prune -exec rm -rf {} +
