#!/bin/sh
# Job-completed hook: one short call that announces the end of the job.
#
# The runner waits for this script and fails the job if it fails, and it has not
# uploaded the job's result yet. So: at most about 10 seconds, always exit 0, and
# never a call that waits until the VM is gone. What was not taken by then is repeated
# in the background; the other end signals (wrapper, power-off, the job source) end the
# VM all the same.
#
# Runs as `bash -e /abs/job-completed.sh` or `sh -e …` in whatever environment the
# job left behind: PATH, curl's own settings and proxies are not to be trusted.

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
0) echo "mayfly: end of the job announced" ;;
1)
    later
    echo "mayfly: the service did not take the announcement yet; it is repeated"
    ;;
*) echo "mayfly: the end of the job is not announced" ;;
esac
exit 0
