#!/bin/sh
# Sets the PATH of the user of the jobs in ~/.zshenv, which every zsh reads. ~/.zprofile is read by login shells only, so neither
# a command over SSH nor one that launchd starts would see it. As root:
#
#   RUNNER_USER=runner sh shell-environment.sh
#
# SHELL_EXPORTS has further lines, such as 'export LANG=en_US.UTF-8'. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner} more=${SHELL_EXPORTS:-} home=/Users/${RUNNER_USER:-runner}
begin='# >>> golden image >>>' end='# <<< golden image <<<'

say() { echo "shell-environment: $*" >&2; }
[ -d "$home" ] || {
    say "$user has no home directory $home: run runner-user.sh first"
    exit 1
}
file=$home/.zshenv
{
    # All but the block of an earlier run.
    if [ -f "$file" ]; then
        sed -e "/^$begin\$/,/^$end\$/d" "$file"
    fi
    echo "$begin"
    # shellcheck disable=SC2016
    echo 'export PATH="/opt/homebrew/bin:/opt/homebrew/sbin:/usr/local/bin:$PATH"'
    if [ -n "$more" ]; then
        printf '%s\n' "$more"
    fi
    echo "$end"
} >"$file.new"
chown "$user:staff" "$file.new"
mv -f "$file.new" "$file"
if grep -q '^[[:space:]]*export' "$home/.zprofile" 2>/dev/null; then
    say "note: $home/.zprofile exports variables, which jobs do not see unless they start a login shell: move them to $file"
fi
