#!/bin/sh
# Installs what every guest needs, and the packages of your jobs: as root,
#
#   PACKAGES='git build-essential' sh packages.sh
#
# May be repeated, also after it was killed.
set -eu
needed="curl ca-certificates openssh-server ${PACKAGES:-}"

say() { echo "packages: $*" >&2; }
if ! command -v apt-get >/dev/null; then
    say "this system has no apt-get: install these with its own package manager: $needed"
    exit 1
fi
# A vm of a cloud image accepts SSH before its first boot is complete. Until then cloud-init may hold the package manager's lock, and
# would write again what seal.sh removes. After seal.sh it has no instance, and would be waited for in vain.
if command -v cloud-init >/dev/null && [ -e /var/lib/cloud/instance ]; then
    timeout 300 cloud-init status --wait >/dev/null 2>&1 || :
fi
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# Completes what a killed dpkg left.
dpkg --configure -a
missing=''
for package in $needed; do
    case $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || :) in
    ii*) ;;
    *) missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    say "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing
fi
