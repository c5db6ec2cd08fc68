# What CI runs and what a person types. `make help` lists it; everything is installed into this folder, nothing outside it.
PYTHON ?= python3
SHARED ?= ../shared

# One virtual environment per interpreter, so that PYTHON= can change without anything being rebuilt for the others.
KEY := $(shell $(PYTHON) -c 'import os, platform, sys, zlib; print("%s-%08x" % (platform.python_version(), zlib.crc32(os.path.realpath(sys.executable).encode())))' 2>/dev/null)
VENV := .venv/$(KEY)
RUN := $(VENV)/bin/python
CARGO_SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find crates -name '*.rs' -o -name Cargo.toml)
CONFORMANCE_PYTHON ?= $(shell scripts/find_conformance_python $(PYTHON))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint rust-test loom sanitize loom-mutants python-test parallel-test stubtest build free-threaded conformance bench soak faults clean requirements lint-tools

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
	@echo "PYTHON=python3.13 chooses the interpreter (now: $(PYTHON))"

demo: $(VENV)/built ## the same real work under every model, and which is best by how much (two minutes)
	@$(RUN) examples/demo.py

test: lint rust-test loom python-test parallel-test stubtest ## everything that must pass before a change lands
	@echo "make test: all passed ($$($(RUN) --version), $$(rustc --version | cut -d ' ' -f 1,2))"

lint: $(VENV)/dev $(VENV)/built | lint-tools ## formatting, clippy, ruff, mypy --strict
	cargo fmt --all --check
	PYO3_PYTHON="$(CURDIR)/$(RUN)" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	cargo clippy --quiet --locked --package plait-engine --features fault-hooks --all-targets -- -D warnings
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

rust-test: | requirements ## unit and property tests of the crates that need no Python
	cargo test --locked --package plait-sync --package plait-engine
	cargo test --locked --package plait-engine --features fault-hooks --test killed_at_every_step

loom: | requirements ## the shared-memory and queue protocols under every interleaving that loom can reach
	RUSTFLAGS="--cfg plait_loom" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --locked --release --package plait-sync --target-dir target/loom --test 'loom_*'

sanitize: | requirements ## the address sanitizer over the tests of crates/sync (two minutes)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/sanitize \
		cargo test --locked --package plait-sync --tests --target "$$(rustc -vV | sed -n 's/^host: //p')"

loom-mutants: | requirements ## weaken the orderings one by one: loom must notice each (two minutes)
	$(PYTHON) scripts/loom_mutants.py

python-test: $(VENV)/dev $(VENV)/programs $(VENV)/built ## pytest; then workers killed at every step, by an extension with hooks for that
	$(RUN) -m pytest
	PYO3_PYTHON="$(CURDIR)/$(RUN)" PYO3_BUILD_EXTENSION_MODULE=1 \
		cargo build --locked --quiet --package plait-python --features fault-hooks
	scripts/hooked_package "target/hooked/$(KEY)" target/debug/lib_rust.so
	PYTHONPATH="$(CURDIR)/target/hooked/$(KEY)" $(RUN) -m pytest tests/faults/test_killed_at_every_step.py

parallel-test: $(VENV)/dev $(VENV)/built ## the contract of the locks, each test in several threads at once
	$(RUN) -m pytest --parallel-threads 4 tests/contract/test_locks_contract.py

stubtest: $(VENV)/dev $(VENV)/built ## the stubs say what the compiled module has
	$(RUN) -m mypy.stubtest plait._rust --allowlist tests/stubtest.txt --ignore-unused-allowlist

build: $(VENV)/built ## the release build, installed into .venv

free-threaded: | requirements ## compile for free-threaded Python 3.14 (needs the checks in SHARED)
	@if [ -d "$(SHARED)/pythons" ]; then \
		CARGO_TARGET_DIR=target/free-threaded bash "$(SHARED)/pythons/compile_free_threaded.sh" 3.14 --quiet --locked \
		&& echo "free-threaded 3.14: compiles"; \
	else echo "free-threaded: skipped, $(SHARED)/pythons is not there"; fi

conformance: ## CPython's own tests of concurrent.futures and multiprocessing on ours (needs the runners in SHARED)
	@if [ ! -d "$(SHARED)/conformance" ]; then echo "conformance: skipped, $(SHARED)/conformance is not there"; \
	elif [ -z "$(CONFORMANCE_PYTHON)" ]; then echo "conformance: skipped, no Python here has CPython's test_concurrent_futures"; \
	else $(MAKE) --no-print-directory build PYTHON="$(CONFORMANCE_PYTHON)" \
		&& scripts/conformance "$(SHARED)/conformance" "$$($(MAKE) --no-print-directory -s print-run PYTHON="$(CONFORMANCE_PYTHON)")"; fi

bench: $(VENV)/bench $(VENV)/built ## ours against the standard library and other libraries, as ratios
	$(RUN) benches/thread_pool.py
	$(RUN) benches/ledger.py
	$(RUN) benches/process_pool.py
	$(RUN) benches/locks.py
	$(RUN) benches/queues.py
	$(RUN) benches/multiprocessing_queue.py
	$(RUN) benches/event_loop.py
	$(RUN) benches/event_loop_tls.py
	cargo bench --locked --quiet --package plait-engine --bench loops_per_thread

soak: $(VENV)/built ## random connections on the event loop for 30 s: no byte on a wrong one, nothing left
	$(RUN) benches/event_loop_soak.py

faults: $(VENV)/built ## ten thousand faults over a hundred thousand tasks: each costs what it may cost (ten minutes)
	$(RUN) benches/faults.py

clean: ## remove everything that was built or installed here
	rm -rf target .venv .mypy_cache .ruff_cache .pytest_cache benches/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/plait/_rust.*.so

requirements:
	@scripts/requirements "$(PYTHON)"

lint-tools: requirements
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 \
		|| { echo "plait: linting needs rustfmt and clippy: rustup component add rustfmt clippy" >&2; exit 1; }

.PHONY: print-run
print-run:
	@echo "$(CURDIR)/$(RUN)"

# Stamps: what was installed, redone when its list changes. pip is renewed first: older ones know no dependency groups.
$(VENV)/tools: pyproject.toml | requirements
	$(PYTHON) -m venv "$(VENV)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(RUN) -m pip install --quiet --disable-pip-version-check --group build
	@touch $@

$(VENV)/built: $(VENV)/tools $(CARGO_SOURCES)
	env -u CONDA_PREFIX VIRTUAL_ENV="$(CURDIR)/$(VENV)" PIP_QUIET=1 $(RUN) -m maturin develop --release --locked --quiet --group build
	@touch $@

$(VENV)/dev: $(VENV)/tools
	$(RUN) -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

$(VENV)/programs: $(VENV)/tools
	$(RUN) -m pip install --quiet --disable-pip-version-check --only-binary :all: --group programs
	@touch $@

$(VENV)/bench: $(VENV)/tools
	$(RUN) -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@
