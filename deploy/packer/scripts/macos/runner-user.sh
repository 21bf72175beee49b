#!/bin/sh
# Makes the user of the jobs: a standard user, who may switch the guest off and nothing else as root. As root:
#
#   RUNNER_USER=runner RUNNER_PASSWORD=… sh runner-user.sh
#
# The password is needed for automatic login. It is stored in the image in a form that can be read back, so use it for nothing
# else. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner}

say() { echo "runner-user: $*" >&2; }
die() {
    say "$*"
    exit 1
}
case $user in
root | *[!a-z0-9_-]* | '' | -*) die "RUNNER_USER must be a user's name of a-z, 0-9, _ and -, and not root" ;;
esac
[ -n "${RUNNER_PASSWORD:-}" ] || die "RUNNER_PASSWORD is missing: the user cannot be logged in at the screen without one"

# sysadminctl asks for the password at a terminal, so that it is in no list of processes.
if ! id -u "$user" >/dev/null 2>&1; then
    RUNNER_USER=$user expect -f - <<'END'
set timeout 120
log_user 0
spawn -noecho sysadminctl -addUser $env(RUNNER_USER) -fullName "CI runner" -shell /bin/zsh -password -
expect {
    -nocase -re {password[^\n]*:} { send -- "$env(RUNNER_PASSWORD)\r"; exp_continue }
    timeout { puts stderr "sysadminctl does not end"; exit 1 }
    eof
}
exit [lindex [wait] 3]
END
fi
# sysadminctl succeeds even if it made no user.
id -u "$user" >/dev/null 2>&1 || die "sysadminctl made no user $user: does the password fulfil the password policy?"
home=/Users/$user
if [ ! -d "$home" ]; then
    createhomedir -c -u "$user" >/dev/null
fi
[ -d "$home" ] || die "$user has no home directory $home"
case " $(id -Gn "$user") " in
*' admin '*) die "$user is an administrator: dseditgroup -o edit -d $user -t user admin" ;;
esac

# Mayfly's scripts switch the guest off with this command, if they may.
rule=/private/etc/sudoers.d/mayfly-power-off
mkdir -p /private/etc/sudoers.d
printf '%s ALL=(root) NOPASSWD: /sbin/shutdown -h now\n' "$user" >"$rule.new"
chmod 0440 "$rule.new"
visudo -cf "$rule.new" >/dev/null || die "the rule for sudo is not valid"
mv -f "$rule.new" "$rule"
say "$user is there, with the home directory $home"
