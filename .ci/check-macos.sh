#!/usr/bin/env bash
# Type-checks and lints everything (library, binary, tests, examples, benches) for Macs with Apple Silicon, without a Mac.
#
# C libraries are compiled for real, by zig, which brings the headers of macOS with it. Nothing is linked: Apple's frameworks
# are not here. So this shows that the code compiles there, not that it runs.
#
# The Rust side is found in one of two ways; MAYFLY_CHECK_MACOS=rustup or =chroot insists on one of them.
#   rustup   the target's standard library, for the toolchain that everything else is built with
#   chroot   where rustup is missing or cannot fetch it: Debian's compiler in a directory of its own, and the standard library
#            compiled from its sources
# Everything is kept in the cache and made again when what it is made of changes. What cannot be checked fails.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
target=aarch64-apple-darwin
cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/macos
export SQLX_OFFLINE=true

say() { echo "check-macos: $*" >&2; }
give_up() {
    say "NOT CHECKED: $*"
    exit 1
}
key() { printf '%s\n' "$@" | sha256sum | cut -c1-12; }

# The same in both ways, and all faults in one run.
check=(clippy --locked --quiet --keep-going --target "$target" --all-targets)
deny=(-- --deny warnings)

if [ "$(uname -s)" = Darwin ]; then
    exec cargo "${check[@]}" "${deny[@]}"
fi

mkdir -p "$cache"
# One run at a time: what is outdated is removed, and nobody may be at work in it.
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
    say "waiting for another check to end"
    flock 9
fi
# Left behind by a run that was killed.
rm -rf "$cache"/*.new

pins=(cargo-zigbuild==0.24.0 ziglang==0.17.0)
tools=$cache/tools-$(key "${pins[@]}")
if ! [ -d "$tools" ]; then
    say "fetching zig's C compiler (once)"
    rm -rf "$cache"/tools-*
    mkdir "$tools.new"
    if ! {
        python3 -m venv "$tools.new/venv" &&
            "$tools.new/venv/bin/pip" install --quiet --disable-pip-version-check --target "$tools.new/tools" "${pins[@]}"
    } >"$cache/log" 2>&1; then
        give_up "${pins[*]} could not be installed from PyPI: $(tail -n 1 "$cache/log")"
    fi
    rm -rf "$tools.new/venv"
    mv "$tools.new/tools" "$tools"
    rmdir "$tools.new"
fi

by_rustup() {
    local fault
    command -v rustup >/dev/null || {
        why="there is no rustup"
        return 1
    }
    rustup target list --installed 2>/dev/null | grep -qx "$target" && return 0
    say "fetching the standard library for $target with rustup (once)"
    fault=$(timeout 180 rustup target add "$target" 2>&1) && return 0
    why="rustup could not fetch the standard library: $(tail -n 1 <<<"$fault")"
    return 1
}

check_by_rustup() {
    say "with $(rustc --version)"
    env CARGO_TARGET_DIR="$cache/target-rustup" \
        CARGO_ZIGBUILD_ZIG_PATH="$tools/ziglang/zig" CARGO_ZIGBUILD_CACHE_DIR="$cache/zig/wrappers" \
        ZIG_GLOBAL_CACHE_DIR="$cache/zig/cache" \
        "$tools/bin/cargo-zigbuild" "${check[@]}" "${deny[@]}"
}

# Debian testing is the oldest suite whose compiler is new enough. What it is made of includes the version that the project
# asks for, so that a chroot whose compiler has become too old is replaced.
suite=forky
packages=rustc,cargo,rust-src,rust-clippy,gcc,libc6-dev,ca-certificates
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
chroot=$cache/chroot-$(key "$suite" "$packages" "$rust_version")

# Mounts are made where only this command sees them. Without root, in a user namespace.
apart=(unshare --mount)
[ "$(id -u)" = 0 ] || apart+=(--map-root-user)

make_chroot() {
    [ -d "$chroot" ] && return 0
    command -v mmdebstrap >/dev/null || give_up "$why, and there is no mmdebstrap to make a chroot with"
    say "$why"
    say "making a chroot of Debian $suite with its Rust compiler (once, about a minute)"
    rm -rf "$cache"/chroot-* "$cache/target-chroot"
    # Unpacked by tar and not by mmdebstrap itself, so that every file belongs to who runs this and can be removed by them.
    mkdir "$chroot.new"
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" - 2>"$cache/log" | tar -x --no-same-owner --exclude='./dev/*' -C "$chroot.new" 2>"$cache/log.tar" ||
        give_up "$why, and no chroot of Debian $suite could be made: $(cat "$cache/log.tar" "$cache/log" | tail -n 1)"
    mv "$chroot.new" "$chroot"
}

check_in_chroot() {
    local registry=${CARGO_HOME:-$HOME/.cargo}/registry
    "${apart[@]}" true 2>"$cache/log" || give_up "$why, and a chroot may not be used here: $(tail -n 1 "$cache/log")"
    mkdir -p "$cache/target-chroot" "$cache/zig-chroot" "$registry"
    # The tree is mounted where it is: Cargo tells two trees apart by their paths, and one outdates the other's results only
    # by times of change.
    # shellcheck disable=SC2016 # expanded by the inner shell
    "${apart[@]}" sh -euc '
        root=$1 tree=$2 tools=$3 registry=$4 work=$5
        shift 5
        into() { mkdir -p "$root$2" && mount --rbind "$1" "$root$2"; }
        file() { mkdir -p "$root/etc" && : >>"$root$1" && mount --bind "$1" "$root$1"; }
        into /dev /dev
        into /proc /proc
        into "$tree" "$tree"
        into "$tools" /check/tools
        into "$registry" /check/cargo/registry
        into "$work/target-chroot" /check/target
        into "$work/zig-chroot" /check/zig
        # For names and certificates of this site, when the registry is asked.
        file /etc/resolv.conf
        file /etc/hosts
        into /etc/ssl/certs /etc/ssl/certs
        exec chroot "$root" /usr/bin/env --chdir="$tree" PATH=/usr/bin:/bin HOME=/check TMPDIR=/tmp "$@"
    ' sh "$chroot" "$tree" "$tools" "$registry" "$cache" \
        RUSTC_BOOTSTRAP=1 CARGO_HOME=/check/cargo CARGO_TARGET_DIR=/check/target \
        CARGO_ZIGBUILD_ZIG_PATH=/check/tools/ziglang/zig CARGO_ZIGBUILD_CACHE_DIR=/check/zig/wrappers \
        ZIG_GLOBAL_CACHE_DIR=/check/zig/cache \
        /check/tools/bin/cargo-zigbuild "${check[@]}" -Zbuild-std=std,panic_abort "${deny[@]}"
}

why='the chroot was asked for'
case ${MAYFLY_CHECK_MACOS:-any} in
any)
    if by_rustup; then
        check_by_rustup
    else
        make_chroot
        check_in_chroot
    fi
    ;;
rustup)
    by_rustup || give_up "$why"
    check_by_rustup
    ;;
chroot)
    make_chroot
    check_in_chroot
    ;;
*) give_up "MAYFLY_CHECK_MACOS is neither rustup nor chroot" ;;
esac
say "everything compiles for $target, without a warning"
