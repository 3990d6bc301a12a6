# make digits   install into .venv, then adapt the shipped mini ViT to digits
# make test     install into .venv, then run the test suite
# make docs     install what builds the site, then build it into build/site
#
# Variables: VENV (.venv), PYTHON (an interpreter, 3.10 to 3.12, to make it with),
# TESTS (arguments for pytest, e.g. TESTS='tests/compat -k nms'), JOBS (processes that
# run the tests, 2).

VENV ?= .venv
PY := $(VENV)/bin/python
# Applies to isolated builds too, so that no step takes an unpinned version.
export PIP_CONSTRAINT := $(CURDIR)/requirements/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(PY) -m pip
TESTS ?=
JOBS ?= 2

GUI_OPENCV := opencv-python opencv-contrib-python opencv-python-headless

.PHONY: digits test docs install install-tests install-docs doctor clean

digits: install
	$(PY) tools/digits.py

test: install-tests
	$(PY) -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

docs: install-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo 'read it: $(PY) -m http.server --directory build/site'

doctor: install
	$(PY) -m mmpetl.doctor

install: $(VENV)/.mmpetl-installed
install-tests: $(VENV)/.mmpetl-tests-installed
install-docs: $(VENV)/.mmpetl-docs-installed

# A file, so that an environment made by other means is kept and filled.
$(VENV)/bin/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.10 python3; do \
	  if $$python -c 'import sys, ensurepip, venv; \
	      sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; exec $$python -m venv $(VENV); fi; done; \
	echo 'no Python 3.10, 3.11 or 3.12 with the venv module was found;' \
	  'name one: make PYTHON=/path/to/python3.11' >&2; exit 1

# The OpenCV packages share one folder: removing one breaks the others, so all go.
$(VENV)/.mmpetl-installed: setup.py mmpetl/version.py requirements/constraints.txt \
    requirements/runtime.txt requirements/openmmlab.txt requirements/headless.txt \
    requirements/video.txt requirements/benchmark.txt \
    | $(VENV)/bin/python
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@if $(PIP) list 2>/dev/null | grep -qE '^opencv-(python|contrib-python|python-headless) '; then \
	  $(PIP) uninstall -q -y $(GUI_OPENCV) opencv-contrib-python-headless; fi
	@echo 'installing what mmpetl needs (the first time this takes a few minutes)'
	$(PIP) install -q -r requirements/runtime.txt -r requirements/headless.txt \
	  -r requirements/benchmark.txt
	$(PIP) install -q --no-deps -r requirements/openmmlab.txt -r requirements/video.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.mmpetl-tests-installed: requirements/tests.txt requirements/cluster.txt \
    requirements/docs.txt $(VENV)/.mmpetl-installed
	$(PIP) install -q -r requirements/tests.txt -r requirements/cluster.txt \
	  -r requirements/docs.txt
	@touch $@

# Neither torch nor mmpetl: the builder reads the source.
$(VENV)/.mmpetl-docs-installed: requirements/docs.txt requirements/constraints.txt \
    | $(VENV)/bin/python
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'the site is built with Python 3.11 or 3.12' >&2; exit 1; }
	$(PIP) install -q -r requirements/docs.txt
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
