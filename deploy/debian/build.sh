#!/usr/bin/env bash
# Builds the Debian package from a built program: target/debian/mayfly_VERSION_ARCH.deb
#
#   [BINARY=target/release/mayfly] [DEB_VERSION=0.1.0] [OUT=target/debian] [COMPRESSION=xz] deploy/debian/build.sh
#
# Reproducible: the same program and the same SOURCE_DATE_EPOCH (default: the time of the last commit) give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${BINARY:=target/release/mayfly}" "${OUT:=target/debian}" "${COMPRESSION:=xz}"
: "${DEB_VERSION:=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
for tool in dpkg-deb fakeroot; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is needed: apt-get install dpkg fakeroot" >&2; exit 1; }
done
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"

DESTDIR=$root PREFIX=/usr BINARY=$BINARY deploy/install.sh >/dev/null
# Debian's places and forms.
rm "$root/usr/share/doc/mayfly/LICENSE" "$root/usr/lib/sysusers.d/mayfly.conf"
rmdir "$root/usr/lib/sysusers.d"
mkdir -p "$root/usr/share/zsh/vendor-completions"
mv "$root/usr/share/zsh/site-functions/_mayfly" "$root/usr/share/zsh/vendor-completions/_mayfly"
rmdir "$root/usr/share/zsh/site-functions"
gzip -9n "$root"/usr/share/man/man1/*.1
install -m 0644 CHANGELOG.md "$root/usr/share/doc/mayfly/CHANGELOG.md"
install -m 0644 deploy/debian/copyright "$root/usr/share/doc/mayfly/copyright"
printf 'mayfly (%s) unstable; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' \
    "$DEB_VERSION" "$DEB_VERSION" 'Mayfly maintainers <maintainers@mayfly.example>' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" |
    gzip -9n >"$root/usr/share/doc/mayfly/changelog.gz"
install -D -m 0644 deploy/debian/lintian-overrides "$root/usr/share/lintian/overrides/mayfly"
# The newest migration of the database that this release knows. A release that knows fewer refuses to replace this one.
schema=$(for file in migrations/*.sql; do basename "$file"; done | sed 's/_.*//; s/^0*//' | sort -n | tail -n 1)
install -d "$root/usr/share/mayfly"
echo "$schema" >"$root/usr/share/mayfly/schema"

install -d "$root/DEBIAN"
sed -e "s/@VERSION@/$DEB_VERSION/" -e "s/@ARCHITECTURE@/$architecture/" \
    -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$root" | cut -f1)/" deploy/debian/control >"$root/DEBIAN/control"
for script in preinst postinst prerm postrm config; do
    sed "s/@SCHEMA@/$schema/" "deploy/debian/$script" >"$root/DEBIAN/$script"
    chmod 0755 "$root/DEBIAN/$script"
done
install -m 0644 deploy/debian/templates "$root/DEBIAN/templates"
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -print0 | xargs -0 touch -h -d "@$SOURCE_DATE_EPOCH"
mkdir -p "$OUT"
package=$OUT/mayfly_${DEB_VERSION}_$architecture.deb
fakeroot dpkg-deb --root-owner-group "-Z$COMPRESSION" --build "$root" "$package" >/dev/null
echo "$package"
