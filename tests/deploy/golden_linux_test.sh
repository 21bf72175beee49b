#!/usr/bin/env bash
# A Linux template, really built: by Packer and the scripts in deploy/packer, in QEMU without KVM. Then it is linted and registered,
# and a job runs in a vm of it. Needs root, mmdebstrap, packer and QEMU.
#
#   BINARY=target/debug/mayfly tests/deploy/golden_linux_test.sh [packages|cloud-image]
#
#   packages      begins with the distribution's packages (debian-base.sh); the template is also pushed, and pulled with a canary
#                 (needs docker-registry)
#   cloud-image   begins with an image that is made like Debian's (cloud_image.sh) and downloaded like it: it boots by itself, and
#                 cloud-init reads the seeds of the build and of the vm
#
# GOLDEN_SYSTEM keeps the unpacked packages for the next run, in a file for each of the two.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-packages}
case $mode in
packages) tools='packer mmdebstrap docker-registry' ;;
cloud-image) tools='packer mmdebstrap' ;;
*)
    echo "usage: golden_linux_test.sh [packages|cloud-image]" >&2
    exit 2
    ;;
esac
: "${BINARY:=target/debug/mayfly}"
BINARY=$(realpath "$BINARY")

say() { echo "golden_linux_test: $*"; }
if [ "$(id -u)" != 0 ]; then
    say "NOT CHECKED: the Linux template (making its disk needs root)"
    exit 0
fi
for tool in $tools; do
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

# Every script runs twice: repeating one must be harmless.
build() {
    TMPDIR=$work deploy/packer/linux/build.sh "$@" --var accelerator=tcg --var disk_size=3G --var passes=2 \
        "$work/golden" >"$work/packer.log" 2>&1
}

from_packages() {
    BASE_SYSTEM=${GOLDEN_SYSTEM:-$work/system.tar} BASE_SIZE=3G BASE_PACKAGES=curl \
        deploy/packer/linux/debian-base.sh "$work/base" 2>"$work/base.log"
    say "base disk after $(took)"
    build --base "$work/base"
    say "template after $(took)"
    rm -rf "$work/base"
}

# The variables file is used as it is, except for the server's address, and the packages, whose installation takes long without KVM.
from_cloud_image() {
    local path=images/cloud/trixie/latest port=$((20000 + $$ % 10000)) tries=100
    IMAGE_SYSTEM=${GOLDEN_SYSTEM:-$work/system.tar} tests/deploy/cloud_image.sh "$work/www/$path" 2>"$work/base.log"
    say "cloud image after $(took)"
    python3 -m http.server --bind 127.0.0.1 --directory "$work/www" "$port" >"$work/www.log" 2>&1 &
    pids+=($!)
    until curl -fsS -o "$work/sums" "http://127.0.0.1:$port/$path/SHA512SUMS" 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "the server of the image does not answer"
        sleep 0.1
    done
    sed "s|https://cloud.debian.org/|http://127.0.0.1:$port/|" deploy/packer/linux/debian-13.pkrvars.hcl >"$work/image.pkrvars.hcl"
    build --var-file "$work/image.pkrvars.hcl" --var packages= --var ssh_timeout=30m
    say "template after $(took)"
    rm -rf "$work/www"
    ! grep -q '"kernel"' "$work/golden/template.json" || fail "the template boots with a kernel beside its disk"

    # Neither the build's key nor its instance is in a file. debugfs reads the root partition where cloud_image.sh made it.
    qemu-img convert -O raw "$work/golden/disk.qcow2" "$work/disk.raw"
    mkdir "$work/files"
    PATH=$PATH:/usr/sbin:/sbin debugfs -R "rdump /etc /home /root /var $work/files" "$work/disk.raw?offset=$((262144 * 512))" \
        >"$work/debugfs.log" 2>&1
    for path in etc/passwd root/.profile var/lib/dpkg/status; do
        [ -s "$work/files/$path" ] || fail "the disk cannot be read: there is no /$path"
    done
    ! grep -rqE 'mayfly-build|instance-id: build-' "$work/files" || fail "the seed of the build is still in the disk"
    [ -z "$(find "$work/files/var/lib/cloud" -name 'build-*')" ] || fail "cloud-init still knows the build"
    rm -r "$work/disk.raw" "$work/files"
}

case $mode in
packages) from_packages ;;
cloud-image) from_cloud_image ;;
esac

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
# cloud-init is slow without KVM.
boot_seconds = $([ "$mode" = packages ] && echo 300 || echo 900)
[registry]
plain_http = true
END
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
job='id -un; curl --version | head -n 1 | cut -d " " -f 1; test ! -w /etc/passwd'
want=$'^runner\ncurl$' memory=512
if [ "$mode" = cloud-image ]; then
    # The only instance that cloud-init knows is this vm; and it has grown the file system to the size of the disk.
    # shellcheck disable=SC2016
    job+=' && ls /var/lib/cloud/instances && [ "$(df --output=size -k / | tail -n 1)" -gt 2600000 ]'
    want=$'^runner\ncurl\n[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' memory=1024
fi
got=$(mayfly run --template golden --memory-mib "$memory" -- "$job" 2>"$work/run.log")
[[ $got =~ $want ]] || fail "the job printed: $got"
say "a job has run after $(took)"
if [ "$mode" = cloud-image ]; then
    say "passed: built, linted and a job run, in $(took)"
    exit 0
fi

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
