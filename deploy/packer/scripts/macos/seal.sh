#!/bin/sh
# The last step before the image is saved: removes identity, secrets and rubbish, so that every clone makes its own. As root:
#
#   BUILD_USER=admin sh seal.sh && shutdown -h now
#
# BUILD_USER, if it is given, may no longer use sudo without a password afterwards. May be repeated, also after it was killed.
set -eu
user=${BUILD_USER:-}

# launchd's sshd makes new ones when the first client connects.
rm -f /private/etc/ssh/ssh_host_*
for home in /Users/* /private/var/root; do
    [ -d "$home" ] || continue
    rm -rf "$home/.zsh_sessions" "$home/.bash_sessions" "$home/.aws" "$home/Library/Caches/Homebrew"
    rm -f "$home/.zsh_history" "$home/.bash_history" "$home/.lesshst" "$home/.viminfo" "$home/.python_history" "$home/.netrc" \
        "$home/.git-credentials" "$home/.docker/config.json" "$home/.ssh/known_hosts"
    # A registration belongs to one runner.
    rm -f "$home/actions-runner/.runner" "$home/actions-runner/.credentials" "$home/actions-runner/.credentials_rsaparams"
done
rm -rf /private/var/tmp/mayfly-* /private/var/db/dhcpclient/leases/*
rm -f /private/var/log/*.gz /private/var/log/*.bz2
if [ -n "$user" ]; then
    rm -f "/private/etc/sudoers.d/$user-nopasswd"
fi
sync
