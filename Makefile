# One word each. Needs python3 (3.11 or newer) and make; the first call installs everything else into .uv and .venv.
#   make demo ARGS="--seed 7"    arguments for the program
#   make test ARGS="-k digest"   arguments for pytest
#   make simulate SEED=42        the whole house in virtual time

PYTHON ?= python3
UV_VERSION := 0.13.9
ARGS ?=
SEED ?= 1

# Nothing from a surrounding environment: a foreign VIRTUAL_ENV or a downloaded interpreter would change what is tested.
unexport VIRTUAL_ENV
export UV_PYTHON_DOWNLOADS := never

GPU_PYTHON ?= $(if $(wildcard .venv-engine/bin/python),.venv-engine/bin/python,$(PYTHON))

UV := .uv/bin/uv
TIDEGATE := .venv/bin/tidegate
ENGINE_LIST := deploy/vllm/requirements-cpu.txt

# Two cores are what is promised on. A test takes as long as many others, so idle processes take over what waits.
TEST_PROCESSES := 2
IN_PROCESSES := --numprocesses $(TEST_PROCESSES) --dist worksteal
NO_ENGINE := not engine and not gpu

.PHONY: demo setup test test-engine test-gpu check fmt bench simulate endurance docs clean
.DELETE_ON_ERROR:

demo: setup
	@$(TIDEGATE) demo $(ARGS)

setup: .venv/.ready

# Unit and golden tests, in two processes; then those on real NATS and Valkey, in one and undisturbed. Under five minutes
# on two cores.
test: setup
	$(call both, \
	  .venv/bin/pytest -m "$(NO_ENGINE) and not integration" $(IN_PROCESSES) $(ARGS), \
	  .venv/bin/pytest -m "$(NO_ENGINE) and integration" $(ARGS))

# What runs inside vLLM, in vLLM's environment; then real vLLM servers on the CPU. Where that environment cannot be built,
# this fails.
test-engine: setup .venv-engine/.ready
	$(call both, \
	  .venv-engine/bin/python -m pytest --confcutdir=tests/engine_env -m engine $(IN_PROCESSES) tests/engine_env $(ARGS), \
	  .venv/bin/pytest -m engine tests/engine $(ARGS))

# Runs two parts of the tests, the second whatever the first finds, and fails if either does. With ARGS="-k ..." one of
# them may well have no such test (pytest's 5), but not both.
define both
@first=0; second=0; \
  $(strip $(1)) || first=$$?; \
  $(strip $(2)) || second=$$?; \
  case $$first$$second in 00) exit 0 ;; 05 | 50) $(if $(strip $(ARGS)),exit 0) ;; esac; \
  echo "tests: not all passed; pytest said $$first in the first part and $$second in the second" >&2; exit 1
endef

# The tiers on CUDA, with a Python that has PyTorch for it; one line says why where there is none.
test-gpu:
	@$(GPU_PYTHON) -m tests.kvstore.tiers.gpu $(ARGS)

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pyright --warnings
	.venv/bin/lint-imports

fmt: setup
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

bench: setup
	.venv/bin/python -m tests.bench $(ARGS)

simulate: setup
	$(TIDEGATE) replay simulate --seed $(SEED) $(ARGS)

# A randomised run of 100,000 requests in virtual time (two minutes): nobody starves, memory keeps to its budget.
endurance: setup
	.venv/bin/python -m tests.simulation.endurance --seed $(SEED) $(ARGS)

# Holds the docs against the tree: links, targets, commands.
docs: setup
	.venv/bin/pytest tests/test_docs.py $(ARGS)

clean:
	rm -rf .uv .venv .venv-engine .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tidegate needs Python 3.11 or newer; this is " + sys.version + " (choose another: make PYTHON=...)")'
	@echo "setup: uv $(UV_VERSION) into .uv"
	@$(PYTHON) -m venv .uv
	@.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.ready: pyproject.toml uv.lock | $(UV)
	@echo "setup: what uv.lock names into .venv"
	@$(UV) sync --quiet --frozen --all-extras --no-extra engine --python $(PYTHON)
	@touch $@

# PyTorch by pip: a CPU build is often at hand only through pip's own settings (find-links, extra indexes), which uv
# does not read. The rest by uv: four times as fast. The list is complete, so nothing is resolved: --no-deps.
.venv-engine/.ready: $(ENGINE_LIST) | $(UV)
	@echo "setup: vLLM for the CPU into .venv-engine (a minute or two)"
	@rm -rf .venv-engine
	@$(PYTHON) -m venv .venv-engine
	@.venv-engine/bin/pip install --quiet --disable-pip-version-check --no-deps $$(grep '^torch==' $(ENGINE_LIST)) || { \
	  echo "No CPU build of PyTorch for pip: see deploy/vllm/README.md" >&2; exit 2; }
	@$(UV) pip install --quiet --compile-bytecode --python .venv-engine/bin/python --no-deps -r $(ENGINE_LIST)
	@touch $@
