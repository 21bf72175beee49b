#!/usr/bin/env bash
# Writes the formula of a release, with its version and the checksums of its archives: fill.sh DIST REPOSITORY_URL
#
# DIST has the archives, and gets mayfly.rb. Homebrew downloads them from REPOSITORY_URL/releases/download/vVERSION/.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${1:?name the directory with the archives} repository=${2:?name the address of the repository}
repository=${repository%/}
case $repository in
https://*[!A-Za-z0-9._/:-]* | https://)
    echo "fill.sh: REPOSITORY_URL has characters that an address cannot have here: $repository" >&2
    exit 2
    ;;
https://*) ;;
*)
    echo "fill.sh: REPOSITORY_URL must begin with https://, not be $repository" >&2
    exit 2
    ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
formula=$(sed -e "s|@REPOSITORY@|$repository|g" -e "s|@VERSION@|$version|g" -e '1s/.*/# Written by make dist./' deploy/homebrew/mayfly.rb)
for target in aarch64-apple-darwin aarch64-unknown-linux-gnu x86_64-unknown-linux-gnu; do
    archive=$dist/mayfly-$version-$target.tar.gz
    [ -f "$archive" ] || {
        echo "fill.sh: there is no $archive; a formula needs all archives" >&2
        exit 1
    }
    sum=$(sha256sum "$archive")
    formula=${formula//@SHA256:$target@/${sum%% *}}
done
if [[ $formula =~ @SHA256:[^@]*@ ]]; then
    echo "fill.sh: nothing is known about ${BASH_REMATCH[0]}" >&2
    exit 1
fi
printf '%s\n' "$formula" >"$dist/mayfly.rb"
