#!/bin/sh
# Installs GitHub's runner for the user of the jobs, on Linux or macOS: as root,
#
#   RUNNER_USER=runner RUNNER_VERSION=2.336.0 RUNNER_SHA256=… sh github-runner.sh
#
# Without RUNNER_VERSION it does nothing. RUNNER_URL is the address of the archive, if it is not GitHub's. The runner is not
# registered: each vm registers its own. May be repeated, also after it was killed; another version replaces the old one.
set -eu
umask 022
user=${RUNNER_USER:-runner} version=${RUNNER_VERSION:-} sum=${RUNNER_SHA256:-}

say() { echo "github-runner: $*" >&2; }
die() {
    say "$*"
    exit 1
}
if [ -z "$version" ]; then
    say "no RUNNER_VERSION is given, so none is installed"
    exit 0
fi
case $version in
*[!0-9.]* | .* | *. | *..*) die "RUNNER_VERSION must be a version such as 2.336.0" ;;
esac
case $sum in
*[!0-9a-f]* | '') die "RUNNER_SHA256 must be the archive's SHA-256 in lower case: it is in the notes of the release" ;;
esac
case $(uname -s) in
Darwin) system=osx home=/Users/$user ;;
*) system=linux home=$(getent passwd "$user" | cut -d: -f6) ;;
esac
case $(uname -m) in
arm64 | aarch64) arch=arm64 ;;
x86_64) arch=x64 ;;
*) die "there is no runner for $(uname -m)" ;;
esac
if [ -z "$home" ] || [ ! -d "$home" ]; then
    die "the user $user has no home directory: run runner-user.sh first"
fi
target=$home/actions-runner
if [ "$(cat "$target/.version" 2>/dev/null || :)" = "$version" ]; then
    say "version $version is there"
    exit 0
fi
url=${RUNNER_URL:-https://github.com/actions/runner/releases/download/v$version/actions-runner-$system-$arch-$version.tar.gz}
new=$home/.actions-runner.new
rm -rf "$new"
mkdir "$new"
curl -fsSL --retry 3 -o "$new.tar.gz" "$url"
if command -v sha256sum >/dev/null; then
    found=$(sha256sum "$new.tar.gz")
else
    found=$(shasum -a 256 "$new.tar.gz")
fi
found=${found%% *}
[ "$found" = "$sum" ] || die "$url has the SHA-256 $found and not $sum"
tar -xzf "$new.tar.gz" -C "$new"
rm -f "$new.tar.gz"
[ -x "$new/run.sh" ] || die "$url is no archive of GitHub's runner: there is no run.sh in it"
if [ "$system" = linux ] && [ -x "$new/bin/installdependencies.sh" ]; then
    "$new/bin/installdependencies.sh"
fi
echo "$version" >"$new/.version"
chown -R "$user" "$new"
# The old one may only be removed when the new one is complete.
rm -rf "$target"
mv "$new" "$target"
say "installed version $version in $target"
