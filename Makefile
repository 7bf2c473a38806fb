PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest
PYTEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# TensorFlow's start-up notes, which say nothing about this package.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help venv demo scenes test test-backends test-oldest lint clean
# Two installs at once into one environment would break it.
.NOTPARALLEL:

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(VENV)/dev.installed  ## make .venv, with all that developing needs

demo: $(VENV)/examples.installed  ## run examples/quickstart.py (ARGS="--epochs 5" hands arguments on)
	@$(BIN)/python -m examples.quickstart $(ARGS)

# The paper's network has an extra of its own.
scenes: $(VENV)/scenes.installed $(if $(findstring paper,$(ARGS)),$(VENV)/paper.installed)  ## train the paper's three tasks (ARGS="--dataset cityscapes --network paper" where there is a GPU)
	@$(BIN)/python -m examples.scenes.train $(ARGS)

test: $(VENV)/test.installed  ## run the test suite (ARGS="-k sigma" hands arguments on)
	@$(BIN)/python -m $(PYTEST) $(ARGS)

test-backends: $(VENV)/backends.installed  ## run what depends on the backend on JAX and PyTorch too
	@KERAS_BACKEND=jax $(BIN)/python -m $(PYTEST) $(ARGS)
	@KERAS_BACKEND=torch $(BIN)/python -m $(PYTEST) $(ARGS)

test-oldest: $(OLDEST)/test.installed  ## run the package's own with the oldest TensorFlow and Keras that setup.cfg takes
	@$(OLDEST)/bin/python -m $(PYTEST) $(addprefix --ignore=tests/,benchmarks integration scenes test_quickstart.py) $(ARGS)

lint: $(VENV)/lint.installed  ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

clean:  ## remove all that is made here
	rm -rf $(VENV) $(OLDEST) *.egg-info build dist *_output .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp for each extra, so that each target installs no more than it needs, and only when the
# dependencies have changed.
$(VENV)/%.installed: setup.cfg pyproject.toml | $(VENV)/created
	@echo "Installing the package and its '$*' extra into $(VENV), which takes a minute or two ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@

# TensorFlow Datasets comes with a tensorflow-metadata for a protobuf that TensorFlow 2.16 cannot use.
$(OLDEST)/test.installed: setup.cfg pyproject.toml
	@echo "Installing the oldest TensorFlow and Keras into $(OLDEST) ..."
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check --editable '.[test]' \
		tensorflow==2.16.1 keras==3.15.0 'tensorflow-metadata<1.17'
	@touch $@

# pip is upgraded because the oldest one that comes with Python 3.11 may not install editable
# packages that have no setup.py.
$(VENV)/created:
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@touch $@
