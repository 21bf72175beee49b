#!/usr/bin/env bash
# Builds a release: archives, their checksums and lists of what is in them, in target/dist.
#
#   [OUT=target/dist] [REPOSITORY_URL=https://…] deploy/release/build.sh [TARGET…]
#
#   mayfly-VERSION-TARGET.tar.gz    program, completions, manual, units or agents (archive.sh)
#   mayfly-VERSION-TARGET.cdx.json  the program's dependencies (CycloneDX)
#   mayfly.rb                       formula for Homebrew, if REPOSITORY_URL is given
#   SHA256SUMS                      checksums of all of them
#
# Everything is cross-compiled in the same way (cross.sh), also for this system, so that the result does not depend on what the
# machine has. Reproducible: two builds of one commit give the same bytes, wherever the tree and the caches are. Needs Linux and
# rustup.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=deploy/release/cross.sh
. deploy/release/cross.sh
: "${OUT:=target/dist}" "${CARGO_TARGET_DIR:=$PWD/target}"
[ $# -gt 0 ] || set -- x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin
# The oldest glibc of the Debian package.
glibc=2.34
# One compiler gives one program.
rust=1.95.0

fail() {
    echo "build.sh: $*" >&2
    exit 1
}
[ "$(uname -s)" = Linux ] || fail "releases are built on Linux, for Macs as well"
command -v cargo-cyclonedx >/dev/null || fail "cargo-cyclonedx is needed: run \`make dist\`, or .ci/deps.sh dist first"
if [ "$(rustc --version | cut -d' ' -f2)" != "$rust" ]; then
    rustup toolchain install --profile minimal "$rust"
    export RUSTUP_TOOLCHAIN=$rust
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
MAYFLY_COMMIT=${MAYFLY_COMMIT:-$(git describe --always --abbrev=12 --exclude '*' --dirty=+)}
mkdir -p "$CARGO_TARGET_DIR" "$OUT"
CARGO_TARGET_DIR=$(cd "$CARGO_TARGET_DIR" && pwd)
export SOURCE_DATE_EPOCH MAYFLY_COMMIT CARGO_TARGET_DIR SQLX_OFFLINE=true

# Writes the completions and the manual of all archives, so it comes first.
here=$(uname -m)-unknown-linux-gnu
order=("$here")
for target; do
    [ "$target" = "$here" ] || order+=("$target")
done

# Directories whose names get into panic messages, and into what C code asserts: DIRECTORY=NAME.
cargo_home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd)
named=("$PWD=/mayfly" "$CARGO_TARGET_DIR=/target" "$cargo_home=/cargo" "$cross_cache=/cross"
    "$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(rustc -vV | sed -n 's/^commit-hash: //p')")
# The names of these have a hash of the registry's address. They are there once the crates are.
cargo fetch --quiet --locked
for directory in "$cargo_home"/registry/src/*/; do
    named+=("${directory%/}=/cargo/registry/src")
done
remap=$(printf '\x1f--remap-path-prefix=%s' "${named[@]}")
remap=${remap:1}
prefix_map=$(printf ' -ffile-prefix-map=%s' "${named[@]}")

build() { # target
    local triple=$1 flags=$remap
    cross_library "$1" || fail "$why"
    case $1 in
    *-apple-darwin) flags+=$'\x1f'"-Clink-arg=-F$cross_frameworks" ;;
    *-linux-gnu) triple=$1.$glibc ;;
    *) fail "no releases are made for $1" ;;
    esac
    CARGO_ENCODED_RUSTFLAGS=$flags CFLAGS=$prefix_map CXXFLAGS=$prefix_map \
        cross_cargo build --release --locked --target "$triple" --bin mayfly
    case $1 in
    *-apple-darwin) deploy/release/mach_uuid.py "$CARGO_TARGET_DIR/$1/release/mayfly" ;;
    esac
}

# That the program loads where it was promised to.
check() { # target program
    local newest
    case $1 in
    *-apple-darwin) python3 -B tests/deploy/mach_o.py "$2" "$cross_macos" >&2 ;;
    *)
        newest=$(grep -aoE 'GLIBC_[0-9.]+' "$2" | sort -uV | tail -n 1)
        [ "$(printf '%s\n' "GLIBC_$glibc" "$newest" | sort -V | tail -n 1)" = "GLIBC_$glibc" ] || fail "$2 needs $newest"
        ;;
    esac
}

cross_tools || fail "$why"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
rm -f "$OUT"/mayfly-*.tar.gz "$OUT"/mayfly-*.cdx.json "$OUT/mayfly.rb" "$OUT/SHA256SUMS"
for target in "${order[@]}"; do
    build "$target"
    check "$target" "$CARGO_TARGET_DIR/$target/release/mayfly"
    case " $* " in *" $target "*) ;; *) continue ;; esac
    BINARY=$CARGO_TARGET_DIR/$target/release/mayfly WRITER=$CARGO_TARGET_DIR/$here/release/mayfly OUT=$OUT \
        deploy/release/archive.sh "$target"
    deploy/release/sbom.py "$target" "$OUT/mayfly-$version-$target.cdx.json"
done
if [ -n "${REPOSITORY_URL:-}" ]; then
    deploy/homebrew/fill.sh "$OUT" "$REPOSITORY_URL"
fi
(
    cd "$OUT"
    files=(mayfly-*)
    [ ! -f mayfly.rb ] || files+=(mayfly.rb)
    sha256sum -- "${files[@]}" >SHA256SUMS
)
cat "$OUT/SHA256SUMS"
