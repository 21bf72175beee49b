#!/bin/sh
# Job-completed hook: one short call that announces the end of the job.
#
# The runner waits for this script, fails the job if it fails, and uploads the job's
# result only afterwards. So it takes at most about 10 seconds, always exits with 0, and
# never waits until the VM is gone. An announcement that was not accepted by then is
# repeated in the background; other end signals (wrapper, power-off, the job source) end
# the VM in any case.
#
# Runs as `bash -e /abs/job-completed.sh` or `sh -e …` in the environment that the job
# left: PATH, curl's own settings and proxies cannot be trusted.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset IFS LD_PRELOAD LD_LIBRARY_PATH CURL_HOME

sh=/bin/sh
case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac

later() {
    # shellcheck disable=SC2086  # may be a program and its first argument
    $sh "$kit/tell.sh" later end </dev/null >/dev/null 2>&1 || :
}

trap 'later; exit 0' HUP INT TERM
# shellcheck disable=SC2086
$sh "$kit/tell.sh" 5 end </dev/null >/dev/null && result=0 || result=$?
case $result in
0) ;;
1)
    later
    echo "mayfly: the service has not accepted the announcement yet; it is repeated"
    ;;
*) echo "mayfly: cannot announce the end of the job" ;;
esac
exit 0
