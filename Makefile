# Every target depends on `setup`, which is idempotent. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
TOOLS := .libtorch/tools/bin
export PATH := $(CURDIR)/$(TOOLS):$(PATH)
RUN_GOLDENS ?= $(if $(MCL_GOLDENS),$(MCL_GOLDENS),tests/goldens$(if $(wildcard ../shared/goldens),:../shared/goldens))

.PHONY: help setup tools build demo test interop fuzz bench scale-out bench-cluster chaos check audit deploy-check docs fmt nccl gpu-check release clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## fetch libtorch 2.11.0 and missing build tools (once)
	@bash scripts/setup.sh

tools: setup ## fetch cargo-nextest and cargo-deny (once)
	@bash scripts/tools.sh

build: setup ## build mcl and mcl-rank
	cargo build --bins -p mcl-cli -p mcl-rank

demo: build ## pre-train on generated pictures with two workers and show that it learned [DATA=folder] [SEED=n]
	@bash scripts/demo.sh

test: tools build ## all tests
	cargo nextest run --workspace

interop: tools ## open exports in torchvision, timm and Python's pickle (fetches them; some GB) [INTEROP_VENV=folder]
	@bash scripts/interop.sh

fuzz: setup ## fuzz every decoder of bytes from outside [SECONDS_EACH=n] [TARGET=name]
	@bash scripts/fuzz.sh $(or $(SECONDS_EACH),60) $(TARGET)

bench: release ## loader, steps and ranks beside PIL and PyTorch, on a machine that does nothing else [PAIRS=n] [ONLY=loader,step,ranks,run]
	"$$(bash scripts/python.sh)" bench/compare.py --pairs $(or $(PAIRS),7) $(if $(ONLY),--only $(ONLY))

scale-out: release ## step times on more ranks: a model from measured parts, checked here
	python3 bench/scale_out.py

bench-cluster: build release ## what failures and saving cost and what a coordinator carries, likewise [TIMES=n] [MINUTES=n]
	cargo run --quiet -p mcl-system-tests --bin mcl-measure -- --times $(or $(TIMES),15) --outage-minutes $(or $(MINUTES),10)
	target/release/mcl bench coordinator --agents 2000 --ranks-per-agent 8 --hz 1
	target/release/mcl bench coordinator --agents 10000 --heartbeats-only --hz 0.2
	target/release/mcl bench coordinator --curve --hz 1
	target/release/mcl bench checkpoint

chaos: build ## kill, stop, cut and starve a cluster by a seed and see what it keeps [SEED=n] [MINUTES=n] [FAMILY=steady|elastic|both]
	cargo run --quiet -p mcl-system-tests --bin mcl-chaos -- --seed $(or $(SEED),1) --minutes $(or $(MINUTES),5) --family $(or $(FAMILY),both)

check: tools ## what CI runs: format, clippy, licences, docs, tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	$(MAKE) test

audit: tools ## known weaknesses in dependencies (fetches the RustSec database)
	cargo deny --log-level error check advisories

deploy-check: build ## deploy/ against a real sshd, a real SLURM, systemd, compose and Kubernetes' schemas (root installs what lacks)
	@bash deploy/check/all.sh

docs: setup ## bring the tables of docs/config.md up to date with the job file's types
	cargo run --quiet -p mcl-config --example reference docs/config.md

fmt: ## format
	cargo fmt --all

nccl: setup ## build the NCCL half of the collective shim (CUDA headers only, no GPU)
	bash scripts/build_nccl.sh target/release

release: setup ## optimised binaries
	cargo build --release --bins -p mcl-cli -p mcl-rank

gpu-check: ## everything that needs a GPU, in 8 minutes at most; uses carried binaries where there is no Rust [BUDGET=seconds]
	@bash scripts/gpu_check.sh "$(RUN_GOLDENS)" --budget $(or $(BUDGET),480)

clean: ## remove builds, keep libtorch
	cargo clean
