#!/bin/sh
# Makes the user of the jobs, who has no password and no way to become root: as root,
#
#   RUNNER_USER=runner sh runner-user.sh
#
# Mayfly starts a job as this user and its own scripts as root, so that the job can neither read their token nor report in their
# name. May be repeated, also after it was killed.
set -eu
user=${RUNNER_USER:-runner}

say() { echo "runner-user: $*" >&2; }
case $user in
root | *[!a-z0-9_-]* | '' | -*)
    say "RUNNER_USER must be a user's name of a-z, 0-9, _ and -, and not root"
    exit 1
    ;;
esac
if ! id -u "$user" >/dev/null 2>&1; then
    # A useradd that was killed leaves its locks, and sometimes a home.
    rm -f /etc/passwd.lock /etc/group.lock /etc/shadow.lock /etc/gshadow.lock /etc/subuid.lock /etc/subgid.lock
    useradd --create-home --shell /bin/bash --user-group "$user"
fi
passwd --quiet --lock "$user"
home=$(getent passwd "$user" | cut -d: -f6)
mkdir -p "$home"
chown "$user:" "$home"
chmod 0750 "$home"
for group in sudo wheel admin docker lxd libvirt disk; do
    case " $(id -nG "$user") " in
    *" $group "*)
        say "$user is in the group $group, whose members can become root: gpasswd -d $user $group"
        exit 1
        ;;
    esac
done
if command -v sudo >/dev/null && sudo -n -l -U "$user" 2>/dev/null | grep -q 'may run the following'; then
    say "$user may use sudo: remove the rule from /etc/sudoers.d"
    exit 1
fi
