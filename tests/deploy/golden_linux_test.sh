#!/usr/bin/env bash
# A Linux template, really built: from the distribution's packages, by Packer and the scripts in deploy/packer, in QEMU without KVM.
# Then it is linted and registered, a job runs in a vm of it, and it is pushed and pulled with a canary. Needs root, mmdebstrap,
# packer, QEMU and docker-registry.
#
#   BINARY=target/debug/mayfly tests/deploy/golden_linux_test.sh
#
# GOLDEN_SYSTEM keeps the unpacked packages for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${BINARY:=target/debug/mayfly}"
BINARY=$(realpath "$BINARY")

say() { echo "golden_linux_test: $*"; }
if [ "$(id -u)" != 0 ]; then
    say "NOT CHECKED: the Linux template (making its disk needs root)"
    exit 0
fi
for tool in packer mmdebstrap docker-registry; do
    if ! command -v "$tool" >/dev/null; then
        say "NOT CHECKED: the Linux template (there is no $tool)"
        exit 0
    fi
done
started=$(date +%s)
took() { echo "$(($(date +%s) - started)) s"; }
# Sockets have short paths.
work=$(mktemp -d /tmp/mfg.XXXXXX)
pids=()
finish() {
    code=$?
    if [ "$code" != 0 ]; then
        tail -n 40 "$work"/*.log "$work"/*.console 2>/dev/null || :
    fi
    for pid in ${pids[0]+"${pids[@]}"}; do
        kill "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
    rm -rf "$work"
}
trap finish EXIT
fail() {
    say "$*"
    exit 1
}

system=${GOLDEN_SYSTEM:-$work/system.tar}
BASE_SYSTEM=$system BASE_SIZE=3G BASE_PACKAGES=curl deploy/packer/linux/debian-base.sh "$work/base" 2>"$work/base.log"
say "base disk after $(took)"
# Every script runs twice: repeating one must be harmless.
TMPDIR=$work deploy/packer/linux/build.sh --base "$work/base" --var accelerator=tcg --var disk_size=3G --var passes=2 \
    "$work/golden" >"$work/packer.log" 2>&1
say "template after $(took)"
rm -rf "$work/base"

data=$work/d
mayfly() { "$BINARY" --data-dir "$data" "$@"; }
"$BINARY" template lint "$work/golden" >"$work/lint.log" 2>&1 || fail "lint finds errors"
mkdir -m 0700 "$data"
cat >"$data/mayfly.toml" <<END
[server]
listen = "127.0.0.1:0"
[drivers.qemu]
accelerator = "tcg"
[budgets]
boot_seconds = 300
[registry]
plain_http = true
END
registry=127.0.0.1:$((20000 + $$ % 10000))
mkdir "$work/registry"
cat >"$work/registry.yml" <<END
version: 0.1
storage:
  filesystem: {rootdirectory: $work/registry}
http:
  addr: $registry
END
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
pids+=($!)
"$BINARY" --data-dir "$data" serve >"$work/serve.log" 2>&1 &
pids+=($!)
tries=300
until mayfly host >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "the service does not answer"
    sleep 0.1
done

mayfly template add golden --from "$work/golden" >/dev/null
mayfly template lint golden >"$work/lint.log" 2>&1 || fail "lint finds errors in the registered template"
got=$(mayfly run --template golden --memory-mib 512 -- 'id -un; curl --version | head -n 1 | cut -d " " -f 1; test ! -w /etc/passwd' 2>"$work/run.log")
[ "$got" = "$(printf 'runner\ncurl')" ] || fail "the job printed: $got"
say "a job has run after $(took)"

cat >"$work/smoke.sh" <<'END'
set -eu
[ "$(id -un)" = runner ]
# Made in this vm, and not in the image.
[ -s /etc/machine-id ]
END
mayfly template push golden "$registry/ci/golden:1" >"$work/push.log" 2>&1
mayfly template pull "$registry/ci/golden:1" --as linux --smoke "$work/smoke.sh" >"$work/pull.log" 2>&1
grep -q '^linux  sha256:' "$work/pull.log" || fail "the canary did not pass"
say "passed: built, linted, a job run, pushed, pulled and canaried, in $(took)"
