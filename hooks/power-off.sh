#!/bin/sh
# Powers the guest off. Fails if the user who runs this has no permission to do so.
#
#   power-off.sh [check]
#
#   check   only finds out whether the user has the permission

# For tests, in which the "guest" is a directory of a machine that must stay on.
if [ -n "${MAYFLY_NO_POWER_OFF:-}" ]; then
    exit 0
fi
only_check=${1:-}
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
# macOS has no poweroff.
if command -v poweroff >/dev/null 2>&1; then
    set -- poweroff
else
    set -- shutdown -h now
fi
if [ "$(id -u)" = 0 ]; then
    [ "$only_check" != check ] || exit 0
    "$@"
elif [ "$only_check" = check ]; then
    sudo -n -l "$@" >/dev/null
else
    sudo -n "$@"
fi 2>/dev/null
