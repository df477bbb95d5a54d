# `make run` runs the whole series and opens its web book; `make test` runs the tests.
# README.md lists the other targets and the same commands without make.

# Settings come from the command line alone: a shell may have a NAME of its own, as in WSL.
NAME :=
FROM :=
CUT :=
IMAGE :=
PROMPT :=
MORE :=
SCALE :=
PDF :=
TORCH :=

# The environment: the active one, else .venv in the clone.
ENV := .venv
ifneq ($(VIRTUAL_ENV),)
ifneq ($(VIRTUAL_ENV),$(CURDIR)/.venv)
ENV := $(VIRTUAL_ENV)
endif
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
ENV := $(CONDA_PREFIX)
endif
PY := $(ENV)/bin/python
PIP := $(PY) -m pip install -c constraints.txt

# One stamp per set of packages and per clone: the second `make` installs nothing.
ID := $(shell pwd | cksum | cut -d' ' -f1)
BOOK := $(ENV)/.mathkit-$(ID)-book
DEV := $(ENV)/.mathkit-$(ID)-dev
CPU_BUILD := PIP_INDEX_URL=https://download.pytorch.org/whl/cpu $(PIP) --no-deps torch

# The first Python that runs (a name on the PATH may be an empty shim) and can make environments.
NAMES := python3.13 python3.12 python3.11 python3
OURS := import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(1)
ABLE := for p in $(NAMES); do $$p -c "$(OURS); import ensurepip, venv" 2>/dev/null && echo $$p && break; done
SOME := for p in $(NAMES); do $$p -c "$(OURS); print('%d.%d' % v)" 2>/dev/null && break; done
NO_VENV := "Python $$v has no venv module. The cure: sudo apt install python$$v-venv"
NO_PYTHON := "No Python 3.11, 3.12 or 3.13 found. The cure: install one, from python.org or your system's packages."
CURE := v=$$($(SOME)); [ -n "$$v" ] && echo $(NO_VENV) || echo $(NO_PYTHON); exit 1

# What `make gpu` reports on.
MODEL := alice

ONCE := "Installing the tested packages, once: README.md says how much; TORCH=cpu makes it less on Linux."

PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest
UNITS := not (long or patient or notebook or browser or slow or gpu)

.PHONY: run book deck handout lab laboratory check test test-full bench results refresh galaxies gpu patient ship cover clips lock clean

run: $(BOOK)
	@$(PY) -m book.build run $(if $(CUT),--cut $(CUT))

book: $(BOOK)
	@$(PY) -m book.build html --stored $(if $(CUT),--cut $(CUT))

deck: $(BOOK)
	@$(PY) -m book.build deck $(NAME) $(if $(SCALE),--scale $(SCALE)) $(if $(PDF),--pdf)

handout: $(BOOK)
	@$(PY) -m book.build handout $(NAME)

lab: $(BOOK)
	@$(PY) -m book.build lab

laboratory: $(BOOK)
	@$(PY) -m book.build laboratory

# mypy takes a minute the first time, on one core: the units run beside it.
check: $(DEV)
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m mypy & $(PYTEST) -n logical --maxprocesses 4 -m "$(UNITS)"; units=$$?; wait $$! && exit $$units

test: check
	$(PYTEST) -n logical --maxprocesses 4 -m "(long or patient) and not slow"
	$(PYTEST) -n 2 --dist loadfile -m "(notebook or browser) and not slow"

test-full: check
	$(PYTEST) -n logical --maxprocesses 4 -m "(long or patient or slow) and not (notebook or browser)"
	$(PYTEST) -n 2 --dist loadfile -m "notebook or browser"
	$(PY) tests/sweep.py

bench: $(BOOK)
	@$(PY) -m book.build bench $(NAME)
	@$(PY) tests/bench_svd.py
	@$(PY) tests/bench_film.py
	@$(PY) tests/bench_atlas.py
	@$(PY) tests/bench_laboratory.py

results: $(BOOK)
	@$(PY) -m studies results $(NAME)

refresh: $(BOOK)
	@$(PY) -m book.build refresh $(NAME)

gpu: $(BOOK)
	@$(PY) -m mathkit report --out runs/report/$(subst /,-,$(MODEL)) --model $(MODEL) $(if $(IMAGE),--image "$(IMAGE)") $(if $(PROMPT),--prompt "$(PROMPT)") $(MORE)

patient: $(BOOK)
	@$(PY) -m studies patient $(if $(FROM),--from $(FROM)) $(NAME)

ship: $(BOOK)
	@$(PY) -m studies ship

cover: $(BOOK)
	@$(PY) -m book.build cover

clips: $(BOOK)
	@$(PY) -m book.build clips $(NAME)

lock: $(BOOK)
	$(PIP) uv && echo torch==2.13.0 | $(PY) -m uv pip compile pyproject.toml - --quiet --all-extras --universal --fork-strategy fewest --python-version 3.11 --no-annotate --custom-compile-command "make lock" -o constraints.txt

# The wheel alone: what it asks for, JAX, is not needed to read its file.
galaxies: $(BOOK)
	$(PIP) --no-deps galaxygrad

clean:
	rm -rf _build dist .pytest_cache .mypy_cache .ruff_cache

$(BOOK): pyproject.toml constraints.txt | $(PY)
	@echo $(ONCE)
	$(if $(filter cpu,$(TORCH)),$(CPU_BUILD) &&) $(PIP) -e ".[book]" && rm -f $(ENV)/.mathkit-* && touch $@

$(DEV): pyproject.toml constraints.txt | $(PY)
	@echo $(ONCE)
	$(if $(filter cpu,$(TORCH)),$(CPU_BUILD) &&) $(PIP) -e ".[book,dev]" && rm -f $(ENV)/.mathkit-* && touch $(BOOK) $@

.venv/bin/python:
	@p=$$($(ABLE)); [ -n "$$p" ] || { $(CURE); }; echo "Making .venv with $$($$p --version)"; $$p -m venv --clear .venv
