#!/bin/sh
# Job-completed hook: one short call that announces the end of the job.
#
# The runner waits for this script and fails the job if it fails, and it has not
# uploaded the job's result yet. So: at most about 20 seconds, always exit 0, and
# never a call that waits until the VM is gone. If the call is lost, the other end
# signals (wrapper, power-off, the job source) end the VM a little later.
#
# Runs as `bash -e /abs/job-completed.sh` or `sh -e …` in whatever environment the
# job left behind: PATH, curl's own settings and proxies are not to be trusted.

trap 'exit 0' HUP INT TERM
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset IFS LD_PRELOAD LD_LIBRARY_PATH CURL_HOME

# A subshell, because a syntax error in a sourced file ends the shell that reads it.
(
    case $0 in
    */*) kit=${0%/*} ;;
    *) kit=. ;;
    esac
    if [ ! -r "$kit/mayfly.env" ] || [ ! -r "$kit/curlrc" ]; then
        echo "mayfly: no kit beside $0, the end of the job is not announced"
        exit 0
    fi
    MAYFLY_URL='' MAYFLY_VM_ID=''
    # shellcheck source=/dev/null
    . "$kit/mayfly.env"

    curl=''
    for candidate in /usr/bin/curl /opt/homebrew/bin/curl /usr/local/bin/curl; do
        if [ -x "$candidate" ]; then
            curl=$candidate
            break
        fi
    done
    if [ -z "$curl" ] || [ -z "$MAYFLY_URL" ] || [ -z "$MAYFLY_VM_ID" ]; then
        echo "mayfly: curl or settings missing, the end of the job is not announced"
        exit 0
    fi

    # -q first: the job may have left a ~/.curlrc. The token stays out of argv: -K.
    if "$curl" -q -K "$kit/curlrc" --silent --show-error --fail --noproxy '*' \
        --connect-timeout 2 --max-time 5 --retry 2 --retry-delay 1 --retry-connrefused \
        --output /dev/null --request DELETE "$MAYFLY_URL/vms/$MAYFLY_VM_ID" </dev/null; then
        echo "mayfly: end of the job announced for vm $MAYFLY_VM_ID"
    else
        echo "mayfly: the service did not take the announcement; it will notice by itself"
    fi
) || :
exit 0
