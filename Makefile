# `make demo` and `make test` need nothing but Python with pip: each sets up
# `.venv` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# TensorFlow's start-up messages would drown what is to be read.
export TF_CPP_MIN_LOG_LEVEL ?= 3
export GRPC_VERBOSITY ?= ERROR

# What more to ask of pytest, such as the floor of coverage in `.ci/run`.
PYTEST_ARGS ?=
PYTEST := -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

# The oldest versions of what the package needs, in an environment of their own.
OLDEST := .venv-oldest

.PHONY: demo test test-slow test-oldest lint docs clean

demo: $(READY)
	@$(BIN)/python experiments/demo.py 2> $(VENV)/demo.log \
		|| (cat $(VENV)/demo.log >&2; exit 1)

test: lint
	$(BIN)/python $(PYTEST) -m "not slow"

# In two parts, since TensorFlow frees no graph before a process ends.
FIRST_PART := $(addprefix tests/,callbacks core data estimators examples \
	experiments hyperparameters layers losses)

test-slow: $(READY)
	$(BIN)/python $(PYTEST) -m slow $(FIRST_PART)
	$(BIN)/python $(PYTEST) -m slow tests $(addprefix --ignore=,$(FIRST_PART))

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST) -m "not slow"

$(OLDEST)/.ready: pyproject.toml tests/oldest.txt
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c tests/oldest.txt -e ".[examples]" hatchling pandas pytest pytest-xdist \
		tensorboard
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy keras_hposgld

docs: $(READY)
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	$(BIN)/mkdocs build --quiet --strict

$(READY): pyproject.toml
	@echo "Setting up $(VENV) (some minutes, the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist site examples/output
