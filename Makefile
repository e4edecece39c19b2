# Everything a person does in this clone. `make` alone lists it.

PYTHON ?= python3
# More arguments for up, test and the benches: make test ARGS="-k slices"
ARGS ?=
SETUP := cluster.bootstrap
# Tests side by side. A worker that crashes ends the run: its place taken, the run may wait for what nobody runs.
TWO := -n 2 --max-worker-restart 0
COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup up wheelhouse test test-cluster test-fleet test-loss test-vllm test-clients test-schedules test-compose test-gpu check bench bench-controller bench-engine bench-isolation bench-relay bench-sessions bench-vllm clean lock python bench-metrics dashboards screenshots bench-board

help: ## what there is to do
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 21

setup: python ## install everything that `up` needs, once
	@$(PYTHON) -m $(SETUP) runtime

up: python ## set up, start Ray on this machine, serve the bundled model
	@$(PYTHON) -m $(SETUP) runtime --quiet
	@exec .venv/bin/homeport up $(ARGS)

wheelhouse: python ## fetch all that set-up installs into wheelhouse/: machines that get it need no package index
	@$(PYTHON) -m $(SETUP) runtime --quiet
	@exec .venv/bin/python -m cluster.fill_wheelhouse

test: python ## set up, run all the tests, two at a time
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.cluster.packages
	@.venv/bin/python -m tests.guests
	@.venv/bin/python -m tests.browser.packages
	@exec .venv/bin/python -m pytest $(TWO) --no-loadscope-reorder $(ARGS)

test-cluster: python ## set up, run the tests of whole clusters in a laboratory (as root; takes longest)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.cluster.packages
	@exec .venv/bin/python -m pytest -m cluster tests/cluster $(ARGS)

test-fleet: python ## kill at random above 24 machines with stand-in engines, hundreds of sessions on them (4 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m pytest -s -m fleet tests/fleet $(ARGS)

test-vllm: python ## set up vLLM for CPUs once (3 min, 3 GB), then test both engines side by side (5 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.vllm.prepare
	@exec .venv/bin/python -m pytest -s -m vllm tests/vllm $(ARGS)

test-clients: python ## set up real client programs once (4 min, 4 GB), then talk with each, without a network (15 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.browser.packages
	@.venv/bin/python -m tests.clients.prepare
	@.venv/bin/python -m tests.clients.offline .venv/bin/python -m pytest -m clients tests/clients $(ARGS)
	@.venv/bin/python -m pytest $(TWO) -m clients tests/e2e tests/test_messages_llama.py tests/test_ollama_llama.py $(ARGS) \
		|| [ $$? -eq 5 ]  # nothing of these was chosen by ARGS

test-loss: python ## lose machines in every way while turns go on, also those that take minutes (as root)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.cluster.packages
	@exec env HOMEPORT_TEST_LOSS=1 .venv/bin/python -m pytest -s -m cluster tests/cluster/test_loss.py $(ARGS)

test-schedules: python ## play 10,000 random schedules of the whole thing on a simulated clock and network
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m tests.schedules $(ARGS)

test-compose: python ## build the image of configs/compose with Docker, run it, and see a session outlive it
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m pytest -s -m docker tests/test_compose.py $(ARGS)

test-gpu: python ## run what needs an NVIDIA GPU; without one, say why and succeed
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m pytest -m gpu tests/gpu $(ARGS)

screenshots: python ## draw docs/*.png: board and desk in Chromium, while sessions talk on real hosts (2 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.browser.packages
	@exec .venv/bin/python -m tests.browser.screenshots $(ARGS)

check: python ## format, lint, types, import rules: the gate of every change
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/ruff format --check --quiet . || { echo "run .venv/bin/ruff format ." >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary
	@.venv/bin/mypy --no-error-summary --platform darwin --no-warn-unreachable cluster serving router
	@.venv/bin/lint-imports --no-logo

dashboards: python ## write Grafana's dashboards from configs/grafana/*.py, and draw them from a Prometheus that watches (5 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m configs.grafana.generate
	@.venv/bin/python -m tests.cluster.packages
	@exec .venv/bin/python -m tests.prometheus $(ARGS)

bench: python ## measure, and write the tables of benchmarks/README.md
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks $(ARGS)

bench-engine: python ## measure the engine beside bare llama.cpp and its own server, and write the table
	@$(PYTHON) -m $(SETUP) bench --quiet
	@exec .venv/bin/python -m benchmarks.engine $(ARGS)

bench-isolation: python ## measure what sessions notice of neighbours, write the table and draw the pictures (8 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks.isolation $(ARGS)

bench-sessions: python ## measure what becomes of sessions and pins when processes are killed, and write the table
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks.sessions $(ARGS)

bench-board: python ## measure what open boards cost the router, and when a board is first seen, and write the table
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.browser.packages
	@exec .venv/bin/python -m benchmarks.board $(ARGS)

bench-controller: python ## measure what 50 machines with 400 replicas cost the head, and write the table
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks.controller $(ARGS)

bench-metrics: python ## measure what telling Prometheus costs, and counting for it, and write the table (4 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks.metrics $(ARGS)

bench-relay: python ## measure the router beside nginx, HAProxy, two Rust routers and LiteLLM, and write the table (15 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@exec .venv/bin/python -m benchmarks.relay $(ARGS)

bench-vllm: python ## set up vLLM for CPUs, measure what a host in front of it takes, and write the table (6 min)
	@$(PYTHON) -m $(SETUP) dev --quiet
	@.venv/bin/python -m tests.vllm.prepare
	@exec .venv/bin/python -m benchmarks.vllm $(ARGS)

clean: ## stop what runs, remove .venv and the tools' caches (wheels, models and state stay)
	@if [ -x .venv/bin/homeport ]; then .venv/bin/homeport down || true; fi
	@rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find cluster serving router tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

lock: python ## work the locks out anew from pyproject.toml; ARGS=--upgrade takes newer versions
	@$(PYTHON) -m $(SETUP) dev --quiet
	@$(COMPILE) --no-emit-package llama-cpp-python pyproject.toml --group install -o requirements.lock
	@$(COMPILE) --no-emit-package llama-cpp-python -c requirements.lock pyproject.toml --group install --group dev \
		-o requirements-dev.lock
	@$(COMPILE) --no-emit-package llama-cpp-python -c requirements-dev.lock pyproject.toml --group install --group dev \
		--group bench -o requirements-bench.lock
	@$(COMPILE) --group build -o requirements-build.lock
	@$(COMPILE) --no-deps --group nodeps -o requirements-nodeps.lock

python:
	@command -v $(PYTHON) >/dev/null || { echo "homeport needs Python 3.11 or newer, and there is no $(PYTHON): \
	install python3 and python3-venv, then try again." >&2; exit 1; }
