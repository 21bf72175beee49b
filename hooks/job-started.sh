#!/bin/sh
# Job-started hook: tells Mayfly that the runner has taken a job.
#
# Same rules as job-completed.sh: short, always exits with 0, does not trust the
# environment. A report that was not accepted is repeated in the background: otherwise the
# runner counts as idle and is removed after a while.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset IFS LD_PRELOAD LD_LIBRARY_PATH CURL_HOME

sh=/bin/sh
case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
event='{"type":"job_started"}'

later() {
    # shellcheck disable=SC2086  # may be a program and its first argument
    echo "$event" | $sh "$kit/tell.sh" later event >/dev/null 2>&1 || :
}

trap 'later; exit 0' HUP INT TERM
# shellcheck disable=SC2086
echo "$event" | $sh "$kit/tell.sh" 3 event >/dev/null && result=0 || result=$?
case $result in
0) ;;
1)
    later
    echo "mayfly: the service has not accepted the report of the job's start yet; it is repeated"
    ;;
*) echo "mayfly: cannot report the start of the job" ;;
esac
exit 0
