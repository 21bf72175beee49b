# `make run` shows a real vm from creation to deletion, for one job; `make test` is everything that CI runs.
# Each target says what it does: make help

SHELL := /bin/sh
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
# Checked queries are verified against .sqlx, so building needs no database.
export SQLX_OFFLINE = true

# Caches may be removed at any time; everything in them is rebuilt.
CACHE := $(or $(MAYFLY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mayfly)
export MAYFLY_CACHE := $(CACHE)
TOOLS := $(CACHE)/tools/bin
# Last, where rustup puts cargo: a login may be older than the toolchain.
export PATH := $(TOOLS):$(PATH):$(HOME)/.cargo/bin
export MAYFLY_TEST_IMAGE ?= $(CACHE)/images/micro

# A build for users shows its commit; + marks changes that are not committed.
COMMIT = $(shell git describe --always --abbrev=12 --exclude '*' --dirty=+ 2>/dev/null)
BUILD_RELEASE = MAYFLY_COMMIT=$(or $(MAYFLY_COMMIT),$(COMMIT),unknown) cargo build --release --locked --bin mayfly

.PHONY: help run test deps test-deps build install uninstall deb dist image docs-blocks lint check-macos unit guest-tests fuzz sqlx openapi docs deny bench bench-pull bench-load bench-build paths e2e-github e2e-gitea e2e-buildkite e2e-garm e2e-gitlab e2e-myshoes network conformance-cloud-hypervisor campaign soak clean

help: ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | column -t -s '	'

run: deps build image ## Show a vm live and die for one job (installs what is missing, builds, runs)
	@.ci/demo.sh

deps:
	@.ci/deps.sh run

test-deps:
	@.ci/deps.sh test

build: deps ## Build the binary (release)
	@$(BUILD_RELEASE)

# Builds nothing, because it is run as root, which has no Rust toolchain.
install: ## Install what make build built: program, completions, manual pages, unit (PREFIX=/usr/local DESTDIR=)
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" BINARY="$(CARGO_TARGET_DIR)/release/mayfly" deploy/install.sh

uninstall: ## Remove what make install installed (PREFIX=/usr/local DESTDIR=); data and user are kept
	@DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr/local)" deploy/install.sh --remove

deb: build ## Build the Debian package (target/debian)
	@BINARY="$(CARGO_TARGET_DIR)/release/mayfly" OUT="$(CARGO_TARGET_DIR)/debian" deploy/debian/build.sh

dist: ## Build a release for all systems: reproducible archives, checksums, dependencies (target/dist; REPOSITORY_URL= for Homebrew)
	@.ci/deps.sh dist
	@OUT="$(CARGO_TARGET_DIR)/dist" deploy/release/build.sh $(TARGETS)

image: deps ## Build the small golden image that tests and the demonstration use (cached)
	@deploy/images/micro/build.sh "$(MAYFLY_TEST_IMAGE)"

test: test-deps image ## Everything that CI runs
	@.ci/test.sh

lint: ## Formatting, clippy with warnings denied, shell scripts
	@.ci/test.sh lint

check-macos: test-deps ## Type-check and lint everything for Macs with Apple Silicon, and link the program (minutes at first)
	@.ci/test.sh macos

unit: ## Tests that need no guest
	@.ci/test.sh unit

guest-tests: image ## Tests with real guests
	@.ci/test.sh guests

fuzz: ## Feed the fuzz targets, FUZZ_SECONDS each (60), or one of them: make fuzz FUZZ_TARGET=lz4_decode
	@.ci/deps.sh fuzz
	@.ci/fuzz.sh $(FUZZ_TARGET)

sqlx: ## Write the checked queries' data (.sqlx) again, after a query or migration changed
	@.ci/sqlx.sh

openapi: ## Write openapi/mayfly.json again
	@cargo run --quiet --locked --bin mayfly -- openapi > openapi/mayfly.json.new && mv openapi/mayfly.json.new openapi/mayfly.json

docs-blocks: image ## Run the commands of README, quick start and other pages as a reader pastes them, with real guests
	@.ci/test.sh docs-blocks

docs: ## Build the documentation site into target/docs
	@.ci/docs.sh

deny: ## Licences, sources, duplicates and known vulnerabilities of the dependencies
	@.ci/test.sh deny

bench: deps build image ## All measurements, each against its anchor (tables, and target/bench/*.json; BENCH_BESIDE=OLD_BINARY: against another build)
	@benches/run.sh

bench-pull: ## Pulling an image against skopeo and the machine's limits (BENCH_GIB=8; minutes, 19 GiB of disk and 10 that stay free)
	@.ci/deps.sh bench
	@cargo build --release --locked --quiet --bin mayfly --example bench-pull
	@python3 benches/pull.py

bench-load: ## Lists over 20,000 vms, and memory after 200 clients (16 minutes; benches/load.py has options)
	@cargo build --release --locked --quiet --bin mayfly
	@python3 -B benches/load.py lists
	@python3 -B benches/load.py memory

bench-build: ## Measure builds of the project with and without huge pages for the compiler (BUILD_ROUNDS=3; an hour and 8 GiB of disk)
	@.ci/deps.sh test
	@python3 -B benches/build.py

paths: ## Count the source files on the paths of four requests, in a running debug build (needs Linux on x86-64 and llvm-symbolizer)
	@.ci/deps.sh bench
	@cargo build --locked --quiet --bin mayfly
	@python3 benches/paths.py

e2e-github: deps image ## Jobs of GitHub's over real VMs while all goes wrong: none may be lost (E2E_JOBS=50, E2E_PATTERNS=…; more than an hour)
	@cargo build --release --locked --quiet --bin mayfly --example github-double
	@python3 benches/github.py

e2e-gitea: deps image ## Jobs of a real Gitea server and runner over real VMs while all goes wrong (GITEA_SERVER=… GITEA_RUNNER=… E2E_JOBS=100, E2E_PATTERNS=…; an hour)
	@cargo build --release --locked --quiet --bin mayfly
	@python3 -B benches/gitea.py

e2e-buildkite: deps image ## Jobs of Buildkite with its real agent in real guests, while guests and service are killed (BUILDKITE_AGENT=… BUILDKITE_ARGS="--jobs 6"; 5 minutes)
	@cargo build --locked --quiet --bin mayfly --example buildkite-double
	@python3 -B tests/peers/buildkite.py $(BUILDKITE_ARGS)

e2e-garm: deps image ## A real GARM with Mayfly as its provider, while provider, GARM and service are killed (GARM=… GARM_ARGS="--rounds 100"; half an hour)
	@cargo build --locked --quiet --bin mayfly --example tart-double
	@python3 -B tests/peers/garm.py $(GARM_ARGS)

e2e-gitlab: deps image ## Jobs through a real GitLab Runner with Mayfly as its executor, while runner and service are killed, and the recipe (GITLAB_RUNNER=… GITLAB_ARGS="--jobs 50"; a quarter of an hour)
	@cargo build --locked --quiet --bin mayfly
	@python3 -B tests/peers/gitlab.py $(GITLAB_ARGS)
	@python3 -B tests/peers/gitlab_recipe.py

e2e-myshoes: deps ## A real myshoes with Mayfly as its plugin, while plugin, myshoes and service are killed (MYSHOES=… MYSHOES_SCHEMA=… MYSHOES_ARGS="--rounds 100"; an hour)
	@cargo build --locked --quiet --bin mayfly
	@python3 -B tests/peers/myshoes.py $(MYSHOES_ARGS)

network: deps image ## Show what guests reach in each network mode, in network namespaces (QEMU as root and as a plain user, Cloud Hypervisor)
	@cargo build --locked --quiet --bin mayfly --example cloud-hypervisor-double
	@python3 -B tests/network/main.py

conformance-cloud-hypervisor: test-deps image ## The driver over a real Cloud Hypervisor, and what that says compared with its recording (CLOUD_HYPERVISOR=/opt/cloud-hypervisor)
	@test -x "$(CLOUD_HYPERVISOR)" || { echo 'CLOUD_HYPERVISOR= has to name a program: make conformance-cloud-hypervisor CLOUD_HYPERVISOR=/opt/cloud-hypervisor' >&2; exit 2; }
	@MAYFLY_TEST_CLOUD_HYPERVISOR="$(abspath $(CLOUD_HYPERVISOR))" cargo nextest run --locked --no-fail-fast --no-capture --run-ignored only -E 'test(/cloud_hypervisor::.*the_real_program/)'

campaign: deps image ## Kill the service again and again while real guests work: no job twice, none lost (KILLS=500 SEED=1 CAMPAIGN_LANES=1; hours)
	@cargo build --release --locked --quiet --bin mayfly --example campaign-replay
	@python3 -B tests/campaign/main.py

soak: deps image ## Attack the service from all sides while jobs run: all limits hold, nobody waits (SOAK_SECONDS=3600 SEED=1)
	@cargo build --release --locked --quiet --bin mayfly --example campaign-replay
	@python3 -B tests/soak/main.py

clean: ## Remove what was built here (caches under $(CACHE) stay)
	@cargo clean
