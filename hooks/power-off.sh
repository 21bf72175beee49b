#!/bin/sh
# Powers the guest off, as far as the user who runs this may. Fails when that is not far
# enough.

# Where the guest is a directory of a machine that is to stay on, as in tests.
if [ -n "${MAYFLY_NO_POWER_OFF:-}" ]; then
    exit 0
fi
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
if [ "$(id -u)" = 0 ]; then
    poweroff || shutdown -h now
else
    sudo -n poweroff || sudo -n shutdown -h now
fi 2>/dev/null
