PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := $(VENV)-oldest
NIGHTLY := $(VENV)-nightly
INSTALLED := $(VENV)-installed
PIP := python -m pip install -qq --disable-pip-version-check
PYTEST := pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# The tests of the package itself, which need no example, no benchmark and no documentation.
PACKAGE_TESTS := $(PYTEST) $(addprefix --ignore=tests/,benchmarks integration scenes test_docs.py test_quickstart.py)

# TensorFlow's start-up notes, which say nothing about this package.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help venv demo scenes test test-backends test-oldest test-nightly docs package lint clean
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

test-oldest: $(OLDEST)/test.installed  ## run the package's own tests with the oldest TensorFlow and Keras that setup.cfg takes
	@$(OLDEST)/bin/python -m $(PACKAGE_TESTS) $(ARGS)

# New nightlies come every day, so every run asks for them. pip takes pre-releases of these two alone,
# for they have no others. The package comes without its dependencies, the stable Keras and TensorFlow.
test-nightly: $(NIGHTLY)/created  ## run the package's own tests with the newest nightlies of TensorFlow and Keras
	@if $(NIGHTLY)/bin/$(PIP) --upgrade tf-nightly-cpu keras-nightly; then \
		$(NIGHTLY)/bin/$(PIP) --group test && \
		$(NIGHTLY)/bin/$(PIP) --no-deps --editable . && \
		$(NIGHTLY)/bin/python -m $(PACKAGE_TESTS) $(ARGS); \
	else \
		echo "test-nightly: skipped, because tf-nightly-cpu and keras-nightly cannot be installed here."; \
	fi

docs: $(VENV)/docs.installed  ## build the documentation into docs/_build/html
	@$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# The wheel is built from the sdist, which shows that both are whole. -I leaves out the checkout.
package: $(VENV)/release.installed  ## build the wheel and the sdist in dist, and try them in a new environment (PYTHON=python3.13)
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/twine check --strict dist/*
	@$(PYTHON) -m venv --clear $(INSTALLED)
	@$(INSTALLED)/bin/$(PIP) dist/*.whl
	@$(INSTALLED)/bin/python -m pip check --disable-pip-version-check
	@$(INSTALLED)/bin/python -I tests/first_steps.py

lint: $(VENV)/lint.installed  ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

clean:  ## remove all that is made here
	rm -rf $(VENV) $(OLDEST) $(NIGHTLY) $(INSTALLED) *.egg-info build dist docs/_build docs/_figures *_output .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp for each set of dependencies, so that each target installs no more than it needs, and only
# when they have changed. Extras are in setup.cfg, and groups of tools in pyproject.toml.
$(VENV)/test.installed: NEEDS := '.[benchmarks,paper]' --group test --group docs
$(VENV)/backends.installed: NEEDS := '.[benchmarks,paper]' --group backends
$(VENV)/docs.installed: NEEDS := . --group docs
$(VENV)/lint.installed: NEEDS := . --group lint
$(VENV)/release.installed: NEEDS := . --group release
$(VENV)/dev.installed: NEEDS := '.[benchmarks,paper]' --group dev
$(VENV)/%.installed: setup.cfg pyproject.toml | $(VENV)/created
	@echo "Installing what '$*' needs into $(VENV), which takes a minute or two ..."
	@$(BIN)/$(PIP) --editable $(or $(NEEDS),'.[$*]')
	@touch $@

# Later versions of onnx need an ml_dtypes that this TensorFlow refuses.
$(OLDEST)/test.installed: setup.cfg pyproject.toml
	@echo "Installing the oldest TensorFlow and Keras into $(OLDEST) ..."
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/$(PIP) --upgrade pip
	@$(OLDEST)/bin/$(PIP) --editable . --group test tensorflow==2.16.1 keras==3.15.0 'onnx<1.19'
	@touch $@

# pip is upgraded because the one that comes with Python 3.11 knows no dependency groups.
$(VENV)/created $(NIGHTLY)/created:
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/$(PIP) --upgrade pip
	@touch $@
