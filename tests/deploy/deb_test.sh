#!/usr/bin/env bash
# The Debian package in a bare chroot: installed, upgraded, not downgraded, removed and purged. Needs root and mmdebstrap.
#
#   BINARY=target/debug/mayfly tests/deploy/deb_test.sh
#
# One vm lives there for one job, in QEMU, if MAYFLY_TEST_IMAGE names the directory of an image. Otherwise the service uses the
# `fake` driver. DEB_TEST_CHROOT keeps the unpacked system for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${BINARY:=target/debug/mayfly}"

if [ "$(id -u)" != 0 ]; then
    echo "NOT CHECKED: the Debian package (a chroot needs root)"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
strip -o "$work/mayfly" "$BINARY"

build() {
    BINARY=$work/mayfly DEB_VERSION=$1 OUT=$work/out SOURCE_DATE_EPOCH=1700000000 COMPRESSION=gzip deploy/debian/build.sh
}
one=$(build 0.1.0)
two=$(build 0.1.1)
mkdir "$work/again"
cp "$one" "$work/again/"
build 0.1.0 >/dev/null
cmp "$one" "$work/again/${one##*/}"

# A release that knows one migration less. It is older, and its number does not matter.
dpkg-deb -R "$one" "$work/older"
sed -i 's/^Version: .*/Version: 0.0.9/' "$work/older/DEBIAN/control"
sed -i 's/^known=.*/known=1/' "$work/older/DEBIAN/preinst"
dpkg-deb --root-owner-group -Zgzip -b "$work/older" "$work/out/older.deb" >/dev/null

if command -v lintian >/dev/null; then
    lintian --fail-on error,warning --allow-root "$one"
else
    echo "NOT CHECKED: lintian (it is not installed)"
fi

system=${DEB_TEST_CHROOT:-$work/system.tar}
if [ ! -s "$system" ]; then
    mmdebstrap --quiet --variant=minbase --format=tar \
        --include=adduser,init-system-helpers,ca-certificates,qemu-system-x86,qemu-utils \
        --aptopt='APT::Install-Recommends "false"' \
        "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$system.new"
    mv "$system.new" "$system"
fi
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$system" --exclude='./dev/*'
install -d "$root/packages"
cp "$work"/out/*.deb "$root/packages/"
cp tests/deploy/deb_inside.sh "$root/packages/inside.sh"
if [ -d "${MAYFLY_TEST_IMAGE:-}" ]; then
    mkdir "$root/packages/image"
    cp "$MAYFLY_TEST_IMAGE"/* "$root/packages/image/"
else
    echo "NOT CHECKED: a vm in the chroot (MAYFLY_TEST_IMAGE names no image)"
fi
# Names that the chroot's device nodes would have; only /dev/null and the sources of randomness are needed.
for device in null zero random urandom; do
    touch "$root/dev/$device"
done
# shellcheck disable=SC2016
unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" sh -euc '
    for device in null zero random urandom; do mount --bind "/dev/$device" "$1/dev/$device"; done
    exec chroot "$1" /bin/sh /packages/inside.sh "$2" "$3"
' sh "$root" "${one##*/}" "${two##*/}"
