# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BACKENDS ?= tensorflow jax torch
PYTEST = TF_CPP_MIN_LOG_LEVEL=3 OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest -n 2

# Holds for what builds the package, too.
export PIP_CONSTRAINT = constraints.txt

.PHONY: help demo test check quick lint audit bench lock clean

help:
	@echo "make demo   set up, train on the images that ship with the package, write a report (minutes)"
	@echo "make test   set up, run the tests on TensorFlow, JAX and PyTorch (BACKENDS=tensorflow for one)"
	@echo "make check  set up, run lint and the quick tests on TensorFlow (a minute and a half)"
	@echo "make lint   set up, run ruff and pyright"
	@echo "make audit  set up, ask the package index for known vulnerabilities of the pinned versions"
	@echo "make bench  set up, time and memory beside other implementations, into docs/performance.md (20 minutes)"
	@echo "make lock   resolve all dependencies anew into constraints.txt"
	@echo "make clean  remove .venv"

demo: $(VENV)/.installed
	$(BIN)/convunext demo

test: $(VENV)/.installed-dev
	@set -e; for backend in $(BACKENDS); do \
		echo "== tests on $$backend"; \
		marks=; [ $$backend = tensorflow ] || marks="each_backend or only_backend"; \
		KERAS_BACKEND=$$backend $(PYTEST) -m "$$marks" $(TESTS); \
	done

check: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j2 lint quick

quick: $(VENV)/.installed-dev
	KERAS_BACKEND=tensorflow $(PYTEST) --quick

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Asks an index, so it stands apart from the tests, which need none. Where none answers, it says so and passes.
audit: PIP_CONSTRAINT =
audit: $(VENV)/.installed-dev
	@rm -rf $(VENV)-audit && $(PYTHON) -m venv $(VENV)-audit
	@if $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; then \
		$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt; \
	else echo "no package index answers: nothing was audited"; fi; \
	status=$$?; rm -rf $(VENV)-audit; exit $$status

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/speed.py --minutes 14 --out docs/img --markdown docs/performance.md
	$(BIN)/python benchmarks/block.py --markdown docs/performance.md
	$(BIN)/python benchmarks/startup.py --markdown docs/performance.md

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "convunext needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

lock: PIP_CONSTRAINT =
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' hatchling torch==2.13.0
	{ echo "# Versions that the tests ran with; made by 'make lock'."; \
		$(VENV)-lock/bin/python -m pip freeze --all --exclude-editable | grep -v ^pip== | sed 's/+cpu$$//'; } \
		> constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock
