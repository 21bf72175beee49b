#!/bin/sh
# The last step before the image is saved: removes identity, secrets and rubbish, so that every clone makes its own. As root:
#
#   sh seal.sh && poweroff
#
# After it, nobody can log in until the next boot has a seed. May be repeated, also after it was killed.
set -eu

if command -v cloud-init >/dev/null; then
    cloud-init clean --logs
fi
# systemd makes a new machine id if the file is empty. With the word `uninitialized` it would also reset which units start.
: >/etc/machine-id
# This service writes its file when it ends.
if command -v systemctl >/dev/null; then
    systemctl stop systemd-random-seed.service 2>/dev/null || :
fi
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /root/.ssh/authorized_keys /root/.ssh/known_hosts

for home in /root /home/*; do
    [ -d "$home" ] || continue
    rm -f "$home/.bash_history" "$home/.zsh_history" "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" "$home/.python_history"
    rm -rf "$home/.cache" "$home/.aws" "$home/.docker/config.json" "$home/.netrc" "$home/.git-credentials"
    # A registration belongs to one runner.
    rm -f "$home/actions-runner/.runner" "$home/actions-runner/.credentials" "$home/actions-runner/.credentials_rsaparams"
done
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /tmp/mayfly-* /var/tmp/cloud-init
command -v apt-get >/dev/null && apt-get clean
find /var/log -type f -name '*.gz' -exec rm -f {} +
find /var/log -type f ! -name '*.journal' -exec sh -c 'for f; do : >"$f"; done' sh {} +
if command -v journalctl >/dev/null; then
    journalctl --rotate --vacuum-size=1 >/dev/null 2>&1 || :
fi
rm -rf /var/log/journal/*
# What was deleted becomes a hole of the image.
fstrim -a 2>/dev/null || :
sync
