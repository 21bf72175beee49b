#!/bin/sh
# Installs a built Mayfly: program, completions, manual pages, documents and, on Linux, the unit for systemd.
#
#   [DESTDIR=] [PREFIX=/usr/local] [BINARY=target/release/mayfly] deploy/install.sh
#   [DESTDIR=] [PREFIX=/usr/local] deploy/install.sh --remove
#
# --remove removes what was installed, and neither the user nor any data.
# DESTDIR is put before every path, for packages. A later run replaces what an earlier one installed and touches nothing else.
# For a package of another system: SYSTEM=Linux or Darwin, and as WRITER a mayfly of the same sources that runs here, which
# writes the completions and the manual.
# Enables and starts nothing. On a Mac, deploy/macos/install.sh sets up the launchd agent.
set -eu
cd "$(dirname "$0")/.."
: "${PREFIX:=/usr/local}" "${DESTDIR:=}" "${BINARY:=target/release/mayfly}"
: "${WRITER:=$BINARY}" "${SYSTEM:=$(uname -s)}"
case $PREFIX in
/*) ;;
*)
    echo "install.sh: PREFIX must be an absolute path, not $PREFIX" >&2
    exit 2
    ;;
esac
to=$DESTDIR$PREFIX
manual=$to/share/man/man1
case ${1:-} in
'') ;;
--remove)
    rm -f "$to/bin/mayfly" \
        "$to/share/bash-completion/completions/mayfly" \
        "$to/share/zsh/site-functions/_mayfly" \
        "$to/share/fish/vendor_completions.d/mayfly.fish" \
        "$manual/mayfly.1" "$manual"/mayfly-*.1 \
        "$to/share/doc/mayfly/README.md" "$to/share/doc/mayfly/LICENSE" "$to/share/doc/mayfly/examples/mayfly.toml" \
        "$to/lib/systemd/system/mayfly.service" \
        "$to/lib/sysusers.d/mayfly.conf"
    # Other files may be in them.
    rmdir "$to/share/doc/mayfly/examples" "$to/share/doc/mayfly" 2>/dev/null || :
    echo "removed Mayfly below $to; with systemd: sudo systemctl daemon-reload"
    exit 0
    ;;
*)
    echo "install.sh: unknown argument $1; the only one is --remove" >&2
    exit 2
    ;;
esac
if [ ! -x "$BINARY" ]; then
    echo "install.sh: there is no program $BINARY: run \`make build\` first, or name another one with BINARY" >&2
    exit 1
fi
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# put MODE FILE TARGET: the target is replaced as a whole, so that a running program is not changed.
put() {
    mkdir -p "$(dirname "$3")"
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    mv -f "$3.new" "$3"
}

put 0755 "$BINARY" "$to/bin/mayfly"
for shell in bash zsh fish; do
    "$WRITER" completions "$shell" >"$work/$shell"
done
put 0644 "$work/bash" "$to/share/bash-completion/completions/mayfly"
put 0644 "$work/zsh" "$to/share/zsh/site-functions/_mayfly"
put 0644 "$work/fish" "$to/share/fish/vendor_completions.d/mayfly.fish"
"$WRITER" manual "$work/man"
# Pages of commands that no longer exist.
rm -f "$manual/mayfly.1" "$manual"/mayfly-*.1
for page in "$work"/man/*.1; do
    put 0644 "$page" "$manual/${page##*/}"
done
put 0644 deploy/mayfly.toml "$to/share/doc/mayfly/examples/mayfly.toml"
put 0644 README.md "$to/share/doc/mayfly/README.md"
put 0644 LICENSE "$to/share/doc/mayfly/LICENSE"
if [ "$SYSTEM" = Linux ]; then
    sed "s|/usr/local/bin/mayfly|$PREFIX/bin/mayfly|" deploy/systemd/mayfly.service >"$work/unit"
    put 0644 "$work/unit" "$to/lib/systemd/system/mayfly.service"
    put 0644 deploy/systemd/sysusers.conf "$to/lib/sysusers.d/mayfly.conf"
fi
echo "installed Mayfly $("$WRITER" -V | cut -d' ' -f2-) below $to"
