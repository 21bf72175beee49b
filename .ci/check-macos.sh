#!/usr/bin/env bash
# Type-checks and lints everything (library, binary, tests, examples, benches) for Macs with Apple Silicon, and links the
# program, without a Mac.
#
# C code is compiled by zig, which includes the headers of macOS, and linked by zig against lists of the symbols that Apple's
# frameworks have (deploy/release/cross.sh). So this shows that the code compiles and links, and that macOS would load the
# program; not that it runs.
#
# The Rust standard library comes from one of two sources; MAYFLY_CHECK_MACOS=rustup or =chroot selects one of them.
#   rustup   the target's standard library, for the toolchain that builds everything else
#   chroot   if rustup is missing or cannot download it: Debian's compiler in a chroot, and the standard library compiled
#            from its sources
# All of it is cached, and rebuilt when its inputs change. If the check is not possible, the script fails.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD
target=aarch64-apple-darwin
cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/macos
export SQLX_OFFLINE=true
# shellcheck source=deploy/release/cross.sh
. deploy/release/cross.sh

say() { echo "check-macos: $*" >&2; }
give_up() {
    say "NOT CHECKED: $*"
    exit 1
}
key() { printf '%s\n' "$@" | sha256sum | cut -c1-12; }

# The same for both sources, and all faults in one run.
check=(clippy --locked --quiet --keep-going --target "$target" --all-targets)
deny=(-- --deny warnings)
link=(rustc --locked --quiet --target "$target" --bin mayfly)
frameworks=(-- -C "link-arg=-F$cross_frameworks")

if [ "$(uname -s)" = Darwin ]; then
    cargo "${check[@]}" "${deny[@]}"
    exec cargo "${link[@]}"
fi

mkdir -p "$cache"
# One run at a time: outdated files are removed, so no other run may be using them.
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
    say "waiting for another check to end"
    flock 9
fi
# Left over from a run that was killed, and from before the tools had a directory of their own.
rm -rf "$cache"/*.new "$cache"/tools-* "$cache/zig"

cross_tools || give_up "$why"

by_rustup() {
    say "with $(rustc --version)"
    export CARGO_TARGET_DIR=$cache/target-rustup
    cross_cargo "${check[@]}" "${deny[@]}"
    cross_cargo "${link[@]}" "${frameworks[@]}"
}

# Debian testing is the oldest suite with a new enough compiler. The key includes the version that the project requires, so
# that a chroot with a compiler that has become too old is replaced.
suite=forky
packages=rustc,cargo,rust-src,rust-clippy,gcc,libc6-dev,ca-certificates
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
chroot=$cache/chroot-$(key "$suite" "$packages" "$rust_version")

# Mounts are visible only to this command. Without root, they are made in a user namespace.
apart=(unshare --mount)
[ "$(id -u)" = 0 ] || apart+=(--map-root-user)

make_chroot() {
    [ -d "$chroot" ] && return 0
    command -v mmdebstrap >/dev/null || give_up "$why, and there is no mmdebstrap to make a chroot with"
    say "$why"
    say "making a chroot of Debian $suite with its Rust compiler (once, about a minute)"
    rm -rf "$cache"/chroot-* "$cache/target-chroot"
    # Unpacked by tar and not by mmdebstrap itself, so that every file belongs to the calling user, who can remove it.
    mkdir "$chroot.new"
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" - 2>"$cache/log" | tar -x --no-same-owner --exclude='./dev/*' -C "$chroot.new" 2>"$cache/log.tar" ||
        give_up "$why, and no chroot of Debian $suite could be made: $(cat "$cache/log.tar" "$cache/log" | tail -n 1)"
    mv "$chroot.new" "$chroot"
}

# Debian's compiler has the allocator of glibc, which is told to use huge pages in its own way (see MALLOC_CONF in
# .cargo/config.toml).
in_chroot() { # what cargo-zigbuild is told
    local registry=${CARGO_HOME:-$HOME/.cargo}/registry
    mkdir -p "$cache/target-chroot" "$cache/zig-chroot" "$registry"
    # The tree is mounted at its own path: Cargo distinguishes trees by their paths, and uses modification times to decide
    # whether results of one tree are outdated for another.
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
        # For names and certificates of the local site, for access to the registry.
        file /etc/resolv.conf
        file /etc/hosts
        into /etc/ssl/certs /etc/ssl/certs
        exec chroot "$root" /usr/bin/env --chdir="$tree" PATH=/usr/bin:/bin HOME=/check TMPDIR=/tmp "$@"
    ' sh "$chroot" "$tree" "$tools" "$registry" "$cache" \
        GLIBC_TUNABLES=glibc.malloc.hugetlb=1 RUSTC_BOOTSTRAP=1 CARGO_HOME=/check/cargo CARGO_TARGET_DIR=/check/target MACOSX_DEPLOYMENT_TARGET="$cross_macos" \
        CARGO_ZIGBUILD_ZIG_PATH=/check/tools/zig CARGO_ZIGBUILD_CACHE_DIR=/check/zig/wrappers \
        ZIG_GLOBAL_CACHE_DIR=/check/zig/cache \
        /check/tools/bin/cargo-zigbuild "$@"
}

by_chroot() {
    "${apart[@]}" true 2>"$cache/log" || give_up "$why, and a chroot may not be used here: $(tail -n 1 "$cache/log")"
    make_chroot
    in_chroot "${check[@]}" -Zbuild-std=std,panic_abort "${deny[@]}"
    in_chroot "${link[@]}" -Zbuild-std=std,panic_abort "${frameworks[@]}"
}

why='the chroot was asked for'
case ${MAYFLY_CHECK_MACOS:-any} in
any) if cross_library "$target"; then source=rustup; else source=chroot; fi ;;
rustup)
    cross_library "$target" || give_up "$why"
    source=rustup
    ;;
chroot) source=chroot ;;
*) give_up "MAYFLY_CHECK_MACOS is neither rustup nor chroot" ;;
esac
"by_$source"
python3 tests/deploy/mach_o.py "$cache/target-$source/$target/debug/mayfly" "$cross_macos"
say "everything compiles for $target, without a warning, and the program links"
