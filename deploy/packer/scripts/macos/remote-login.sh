#!/bin/sh
# Switches Remote Login (SSH) on for the user of the jobs. As root:
#
#   RUNNER_USER=runner SSH_AUTHORIZED_KEY='ssh-ed25519 …' sh remote-login.sh
#
# With a public key, passwords are no longer accepted for this user. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner} key=${SSH_AUTHORIZED_KEY:-} home=/Users/${RUNNER_USER:-runner}

say() { echo "remote-login: $*" >&2; }
die() {
    say "$*"
    exit 1
}
id -u "$user" >/dev/null 2>&1 || die "there is no user $user: run runner-user.sh first"
case $key in
'' | 'ssh-ed25519 '* | 'ssh-rsa '* | 'ecdsa-sha2-'*) ;;
*) die "SSH_AUTHORIZED_KEY must be a public key, which begins with ssh-ed25519, ssh-rsa or ecdsa-sha2-" ;;
esac

# systemsetup -setremotelogin would need Full Disk Access.
launchctl enable system/com.openssh.sshd
if ! launchctl print system/com.openssh.sshd >/dev/null 2>&1; then
    launchctl bootstrap system /System/Library/LaunchDaemons/ssh.plist
fi
launchctl print system/com.openssh.sshd >/dev/null 2>&1 || die "launchd does not load com.openssh.sshd"

# If the group exists, only its members may log in.
if dseditgroup -o read com.apple.access_ssh >/dev/null 2>&1; then
    dseditgroup -o edit -a "$user" -t user com.apple.access_ssh
fi

mkdir -p /private/etc/ssh/sshd_config.d
{
    echo 'UseDNS no'
    if [ -n "$key" ]; then
        printf 'Match User %s\n    PasswordAuthentication no\n    KbdInteractiveAuthentication no\n' "$user"
    fi
} >/private/etc/ssh/sshd_config.d/200-mayfly.conf.new
mv -f /private/etc/ssh/sshd_config.d/200-mayfly.conf.new /private/etc/ssh/sshd_config.d/200-mayfly.conf

if [ -n "$key" ]; then
    mkdir -p "$home/.ssh"
    printf '%s\n' "$key" >"$home/.ssh/authorized_keys.new"
    chmod 0600 "$home/.ssh/authorized_keys.new"
    mv -f "$home/.ssh/authorized_keys.new" "$home/.ssh/authorized_keys"
    chmod 0700 "$home/.ssh"
    chown -R "$user:staff" "$home/.ssh"
fi
say "$user may log in over SSH"
