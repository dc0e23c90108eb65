# From a fresh clone: `make demo`, `make test`. Needs Python 3.10 or newer with venv, gcc, cmake, make
# and the package registries; everything else goes into .venv (and .venv-apt for the second test leg).

PYTHON ?= python3
TORCH ?=
OUT ?= out/demo
PYTEST ?= -q

VENV := .venv
VENV_APT := .venv-apt
comma := ,
EXTRAS := all,ros,test
# An explicit TORCH replaces the pinned build (see constraints.txt).
WANT_TORCH := $(if $(TORCH),'$(TORCH)')
unpinned = $(if $(TORCH),sed -i '/^torch==/d' $(1),true)

.DEFAULT_GOAL := help
.PHONY: help setup setup-apt setup-all demo test test-main test-apt test-apt-ros test-apt-core lint format docs bench clean python-new-enough

help:
	@echo 'make setup   create .venv with everything (other targets do it when needed)'
	@echo 'make demo    synthetic flight -> bag -> odometry -> trajectory error and $(OUT)/report.html'
	@echo 'make test    all tests with the newest numpy and OpenCV, and again with numpy 1.26 + OpenCV 4'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   latency per stage, bundle adjustment against gtsam'
	@echo 'make clean   remove environments, caches and results'

python-new-enough:
	@command -v $(PYTHON) >/dev/null || { echo 'make: no "$(PYTHON)" here: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) -V), Python 3.10 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo 'make: $(PYTHON) has no venv module: apt install python3-venv' >&2; exit 1; }

# $(call install,VENV,CONSTRAINTS,EXTRAS): environment with this package in place; tf2_msgs is on no
# registry, so its one message is compiled into the environment where ROS itself is not installed.
define install
	$(PYTHON) -m venv $(1)
	cp $(2) $(1)/constraints.txt
	$(call unpinned,$(1)/constraints.txt)
	$(1)/bin/python -m pip install -q --disable-pip-version-check -c $(1)/constraints.txt $(WANT_TORCH) -e '.[$(3)]'
	if [ -x interfaces/build_tf2_msgs.sh ]; then PIP_CONSTRAINT=$(1)/constraints.txt interfaces/build_tf2_msgs.sh $(1); fi
endef

# numpy 1.26 has no build for Python 3.13 and newer; there the second leg cannot exist, and says so.
HAS_NUMPY_1 := $(shell $(PYTHON) -c 'import sys; sys.version_info < (3, 13) and print("yes")' 2>/dev/null)
INTERFACES := $(wildcard interfaces/*.sh interfaces/*/*.* interfaces/*/msg/*)

$(VENV)/.installed: setup.py constraints.txt $(INTERFACES) | python-new-enough
	$(call install,$(VENV),constraints.txt,$(EXTRAS)$(comma)lint)
	@touch $@

# After the first: both write the package's metadata into this folder.
$(VENV_APT)/.installed: setup.py constraints-apt.txt $(INTERFACES) | python-new-enough $(VENV)/.installed
	$(call install,$(VENV_APT),constraints-apt.txt,$(EXTRAS))
	@touch $@

setup: $(VENV)/.installed
setup-apt: $(VENV_APT)/.installed
setup-all: setup $(if $(HAS_NUMPY_1),setup-apt)

demo: $(VENV)/.installed
	$(VENV)/bin/mv-matcher demo --out $(OUT)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# docs/settings.md is the settings tree; a test fails when it is not.
docs: $(VENV)/.installed
	{ sed '/^| setting /,$$d' docs/settings.md; $(VENV)/bin/mv-matcher settings --form markdown; } > docs/settings.new
	mv docs/settings.new docs/settings.md

test-main: $(VENV)/.installed
	$(VENV)/bin/python -m pytest $(PYTEST) $(if $(QUICK),--leg first)

ifeq ($(HAS_NUMPY_1),)
test-apt test-apt-ros test-apt-core:
	@echo 'make: no numpy 1.26 for $(PYTHON): second leg left out (PYTHON=python3.12 has it)'
else
test-apt: test-apt-ros test-apt-core
test-apt-ros: $(VENV_APT)/.installed
	$(VENV_APT)/bin/python -m pytest $(PYTEST) --leg second test/ros
test-apt-core: $(VENV_APT)/.installed
	$(VENV_APT)/bin/python -m pytest $(PYTEST) --leg second --ignore test/ros
endif

# Two cores, two legs, one thread each, side by side. Only tests over DDS of both would take each
# other's time: the second leg begins with them, the first ends with them (test/conftest.py). Each
# slow test runs in one leg. The first leg's output comes last, so that the closing line is that of
# all tests.
test: setup-all
	@mkdir -p out
	@$(MAKE) --no-print-directory test-main QUICK=$(HAS_NUMPY_1) > out/test-main.log 2>&1 & main=$$!; \
	$(MAKE) --no-print-directory test-apt-ros; ros=$$?; \
	$(MAKE) --no-print-directory test-apt-core; core=$$?; \
	wait $$main; status=$$?; cat out/test-main.log; \
	[ $$core -eq 0 ] && [ $$ros -eq 0 ] || echo 'make: tests with numpy 1.26 and OpenCV 4 failed, see above' >&2; \
	[ $$core -eq 0 ] && [ $$ros -eq 0 ] && [ $$status -eq 0 ]

bench: $(VENV)/.installed
	$(VENV)/bin/mv-matcher bench

clean:
	rm -rf $(VENV) $(VENV_APT) out build install log dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
