#!/bin/sh
# Job-started hook: tells Mayfly that the runner has taken a job.
#
# Same rules as job-completed.sh: short, always exit 0, no trust in the environment.
# A lost call costs nothing but a line in the vm's timeline.

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
        echo "mayfly: no kit beside $0, the start of the job is not announced"
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
        echo "mayfly: curl or settings missing, the start of the job is not announced"
        exit 0
    fi

    if ! "$curl" -q -K "$kit/curlrc" --silent --show-error --fail --noproxy '*' \
        --connect-timeout 2 --max-time 5 --retry 1 --retry-delay 1 --retry-connrefused \
        --output /dev/null --request POST --header 'Content-Type: application/json' \
        --data-binary '{"type":"job_started"}' \
        "$MAYFLY_URL/vms/$MAYFLY_VM_ID/events" </dev/null; then
        echo "mayfly: the service did not take the start of the job; going on without"
    fi
) || :
exit 0
