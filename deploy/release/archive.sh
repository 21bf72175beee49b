#!/usr/bin/env bash
# Packs a built program for users: OUT/mayfly-VERSION-TARGET.tar.gz
#
#   BINARY=target/TARGET/release/mayfly [WRITER=] [OUT=target/dist] [LEVEL=9] deploy/release/archive.sh TARGET
#
# WRITER is a mayfly of the same sources that runs here, if BINARY does not. The archive has one directory, whose content belongs
# into a prefix such as /usr/local: bin, share and, for Linux, lib. LEVEL is that of gzip.
#
# Reproducible: the same program and the same SOURCE_DATE_EPOCH (default: the time of the last commit) give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:?name a target, like x86_64-unknown-linux-gnu}
: "${BINARY:?name the program}" "${OUT:=target/dist}" "${LEVEL:=9}"
: "${WRITER:=$BINARY}"
case $target in
*-linux-*) system=Linux ;;
*-apple-darwin) system=Darwin ;;
*)
    echo "archive.sh: no archives are made for $target" >&2
    exit 2
    ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=mayfly-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DESTDIR=$work/image PREFIX=/usr/local BINARY=$BINARY WRITER=$WRITER SYSTEM=$system deploy/install.sh >/dev/null
mv "$work/image/usr/local" "$work/$name"
install -m 0644 CHANGELOG.md "$work/$name/share/doc/mayfly/CHANGELOG.md"
if [ "$system" = Darwin ]; then
    install -d -m 0755 "$work/$name/share/mayfly/macos"
    for file in deploy/macos/*; do
        mode=0644
        [ ! -x "$file" ] || mode=0755
        install -m "$mode" "$file" "$work/$name/share/mayfly/macos/"
    done
fi

mkdir -p "$OUT"
# By one process each, with nothing in the result that depends on this machine: neither users, times, nor the file system's order.
LC_ALL=C tar --create --directory "$work" --format=ustar --sort=name --mtime="@$epoch" --owner=root:0 --group=root:0 "$name" |
    gzip -n "-$LEVEL" >"$OUT/$name.tar.gz.new"
mv -f "$OUT/$name.tar.gz.new" "$OUT/$name.tar.gz"
echo "$OUT/$name.tar.gz"
