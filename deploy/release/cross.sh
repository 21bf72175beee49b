#!/usr/bin/env bash
# Compiles and links for other systems, with zig as the C compiler and linker. Sourced by build.sh and .ci/check-macos.sh.
#
#   cross_tools             installs zig and cargo-zigbuild if they are missing, and sets $tools to their directory
#   cross_library TARGET    installs the target's standard library with rustup
#   cross_cargo ARGUMENT…   cargo-zigbuild
#
# On failure, the first two set $why.
#
# The linker takes the names in Apple's frameworks from the lists in frameworks/, because the frameworks themselves come only
# with Apple's compilers. Every symbol that Mayfly needs is in a list, so a missing one fails the link.

cross_home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cross_cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/cross
cross_pins=(cargo-zigbuild==0.24.0 ziglang==0.17.0)
# The oldest macOS, for rustc and for C code. The file zig has it for the linker.
# shellcheck disable=SC2034 # used by who sources this file
cross_macos=13.0
# shellcheck disable=SC2034
cross_frameworks=$cross_home/frameworks

cross_tools() {
    tools=$cross_cache/tools-$(printf '%s\n' "${cross_pins[@]}" | cat - "$cross_home/zig" | sha256sum | cut -c1-12)
    mkdir -p "$cross_cache"
    # One at a time.
    (
        flock 8
        [ ! -d "$tools" ] || exit 0
        echo "fetching zig's C compiler (once)" >&2
        rm -rf "$cross_cache"/tools-*
        mkdir "$tools.new"
        python3 -m venv "$tools.new/venv" &&
            "$tools.new/venv/bin/pip" install --quiet --disable-pip-version-check --target "$tools.new/tools" "${cross_pins[@]}" &&
            install -m 0755 "$cross_home/zig" "$tools.new/tools/zig" &&
            mv "$tools.new/tools" "$tools" &&
            rm -rf "$tools.new"
    ) 8>"$cross_cache/lock" >"$cross_cache/log" && return 0
    why="${cross_pins[*]} could not be installed from PyPI"
    return 1
}

cross_library() {
    local fault
    command -v rustup >/dev/null || {
        why="there is no rustup"
        return 1
    }
    rustup target list --installed 2>/dev/null | grep -qx "$1" && return 0
    echo "fetching the standard library for $1 with rustup (once)" >&2
    fault=$(timeout 180 rustup target add "$1" 2>&1) && return 0
    # shellcheck disable=SC2034
    why="rustup could not fetch the standard library: $(tail -n 1 <<<"$fault")"
    return 1
}

cross_cargo() {
    env MACOSX_DEPLOYMENT_TARGET="$cross_macos" CARGO_ZIGBUILD_ZIG_PATH="$tools/zig" \
        CARGO_ZIGBUILD_CACHE_DIR="$cross_cache/wrappers" ZIG_GLOBAL_CACHE_DIR="$cross_cache/zig" \
        "$tools/bin/cargo-zigbuild" "$@"
}
