#!/usr/bin/env bash
# Everything that CI runs, in an order that finds mistakes early. One argument runs one part of it.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${MAYFLY_TEST_IMAGE:=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/images/micro}"
export MAYFLY_TEST_IMAGE SQLX_OFFLINE=true

started=$(date +%s)
part() { echo; echo "== $1 ($(($(date +%s) - started)) s)"; }

lint() {
    part 'format'
    cargo fmt --check
    part 'shell scripts'
    # Shell scripts are found by their first line, because a guide may show a script.
    git ls-files | xargs awk 'FNR == 1 { if (/^#!\/(bin\/sh|usr\/bin\/env bash)/) print FILENAME; nextfile }' | xargs shellcheck
    part 'workflows'
    if command -v actionlint >/dev/null; then
        actionlint
    else
        echo 'NOT CHECKED: workflows (actionlint is built with Go, and there is no Go)'
    fi
    part 'Packer templates'
    .ci/packer.sh
    part 'clippy'
    cargo clippy --quiet --locked --all-targets -- --deny warnings
    part 'type check of the fuzz targets, which compile sources of this crate'
    cargo check --quiet --locked --manifest-path fuzz/Cargo.toml
}

macos() {
    part 'type check, clippy and link for macOS on Apple Silicon'
    python3 tests/deploy/mach_o_test.py
    .ci/check-macos.sh
}

compile() {
    part 'compile the tests and the binary'
    cargo nextest run --locked --no-run
}

unit() {
    part 'unit and integration tests'
    cargo nextest run --locked --profile ci -E 'not test(/^guests::/) and not test(/::generated::/) and not test(/::go_host::/)'
    part 'the plugin of myshoes under the library of its host, in Go'
    shoes_host
    part 'the installation on a Mac, with stand-ins for what only a Mac has'
    python3 tests/deploy/macos_test.py
    part 'golden images on a Mac and hosts on EC2, with stand-ins for what only a Mac has'
    python3 -B tests/deploy/golden_mac_test.py
    part 'what template lint finds'
    cargo build --quiet --locked --bin mayfly
    BINARY=${CARGO_TARGET_DIR:-target}/debug/mayfly python3 -B tests/deploy/lint_test.py
    part 'the recipes for other CI systems, against simulated servers'
    cargo build --quiet --locked --bin mayfly --example tart-double
    BINARY=${CARGO_TARGET_DIR:-target}/debug/mayfly python3 -B tests/deploy/recipes_test.py
    part 'documentation tests'
    cargo test --quiet --locked --doc
}

# go.sum pins the modules. A newer toolchain is not downloaded.
shoes_host() {
    local host=${CARGO_TARGET_DIR:-target}/shoes-host
    if ! GOTOOLCHAIN=local GOFLAGS=-mod=readonly go -C tests/peers/shoes-host mod download; then
        echo 'NOT CHECKED: the plugin of myshoes under go-plugin (it needs Go 1.24, which .ci/deps.sh installs, and the modules of tests/peers/shoes-host)'
        return
    fi
    host=$(realpath -m "$host")
    GOTOOLCHAIN=local GOFLAGS=-mod=readonly go -C tests/peers/shoes-host build -o "$host" .
    MAYFLY_SHOES_HOST=$host cargo nextest run --locked --profile ci -E 'test(/::go_host::/)'
}

guests() {
    part 'the guest kit, in shells and in real guests'
    MAYFLY_MICRO_IMAGE=$MAYFLY_TEST_IMAGE tests/guest/run.sh
    part 'whole lives with real guests'
    cargo nextest run --locked --profile guests -E 'test(/^guests::/)'
    part 'jobs of GitHub over real guests: a few of make e2e-github'
    cargo build --quiet --locked --bin mayfly --example github-double
    BENCH_PROFILE=debug E2E_NAME=github-jobs-short E2E_JOBS=3 E2E_PATTERNS=at-once,killed,counter-proof \
        python3 benches/github.py
    part 'what guests reach in each network mode, in namespaces'
    cargo build --quiet --locked --bin mayfly --example cloud-hypervisor-double
    python3 -B tests/network/main.py
    part 'what make campaign sees'
    python3 -B tests/campaign/observer_test.py
    part 'an upgrade under running jobs, and the way back'
    cargo build --quiet --locked --bin mayfly
    BINARY=${CARGO_TARGET_DIR:-target}/debug/mayfly python3 -B tests/deploy/upgrade_test.py
}

docs_blocks() {
    part "what the test of the pages' commands detects"
    python3 -B tests/docs/pages_test.py
    part 'the commands of the pages, as a reader pastes them'
    cargo build --quiet --locked --bin mayfly
    python3 -B tests/docs/main.py
}

# The plan of this seed has everything in it: a service that is down for longer than the boot budget, a full disk, few
# descriptors, a clock step, a stall, and a DELETE of a job that is longer than the boot budget.
campaign() {
    part 'a few kills of make campaign'
    cargo build --quiet --locked --bin mayfly --example campaign-replay
    CAMPAIGN_PROFILE=debug CAMPAIGN_NAME=campaign-short KILLS=6 SEED=2642 CAMPAIGN_BOOT_SECONDS=20 \
        python3 -B tests/campaign/main.py
}

soak() {
    part 'what make soak detects'
    python3 -B tests/soak/judge_test.py
    part '75 seconds of make soak'
    cargo build --quiet --locked --bin mayfly --example campaign-replay
    SOAK_PROFILE=debug SOAK_NAME=soak-short SOAK_SECONDS=75 SOAK_ALONE=3 python3 -B tests/soak/main.py
}

package() {
    part 'the Debian package in a bare chroot'
    cargo build --quiet --locked --bin mayfly
    DEB_TEST_CHROOT=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/deb-test-system.tar tests/deploy/deb_test.sh
    part 'the Debian package under systemd, in a guest'
    SYSTEMD_TEST_SYSTEM=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/systemd-test-system.tar tests/deploy/systemd_test.sh
    part 'release archives and the formula for Homebrew'
    BINARY=${CARGO_TARGET_DIR:-target}/debug/mayfly python3 tests/deploy/release_test.py
}

golden() {
    part 'a Linux template, built by Packer from packages, with a job and a canary in it'
    cargo build --quiet --locked --bin mayfly
    BINARY=${CARGO_TARGET_DIR:-target}/debug/mayfly \
        GOLDEN_SYSTEM=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/golden-test-system.tar tests/deploy/golden_linux_test.sh
}

drift() {
    part 'stored query data matches the queries and migrations'
    fresh=$(mktemp -d)
    .ci/sqlx.sh "$fresh"
    diff -r .sqlx "$fresh"
    rm -rf "$fresh"
    part 'documentation site'
    .ci/docs.sh
    part 'the OpenAPI document against the served API, by generated requests'
    venv=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/schemathesis-venv
    pin=schemathesis==4.32.5
    if [ "$(cat "$venv/pin" 2>/dev/null)" != "$pin" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check "$pin"
        echo "$pin" >"$venv/pin"
    fi
    MAYFLY_SCHEMATHESIS=$venv/bin/schemathesis cargo nextest run --locked --profile ci -E 'test(/::generated::/)'
}

deny() {
    part 'dependencies: licences, sources, bans'
    cargo deny --config .deny.toml --all-features --log-level error check --hide-inclusion-graph bans licenses sources
    part 'dependencies: known vulnerabilities'
    .ci/advisories.sh check
}

case ${1:-all} in
lint) lint ;;
macos) macos ;;
compile) compile ;;
unit) unit ;;
guests) guests ;;
campaign) campaign ;;
soak) soak ;;
package) package ;;
golden) golden ;;
drift) drift ;;
docs-blocks) docs_blocks ;;
deny) deny ;;
all)
    lint
    macos
    compile
    unit
    guests
    docs_blocks
    campaign
    soak
    package
    golden
    drift
    deny
    part 'all parts passed'
    ;;
*)
    echo "test.sh: unknown part: $1" >&2
    exit 2
    ;;
esac
