#!/bin/sh
# Sends one request to Mayfly and repeats it until it is answered.
#
#   tell.sh SECONDS event        POST the event on standard input
#   tell.sh SECONDS end          DELETE this vm: announces the end of its job
#   tell.sh SECONDS get NAME     GET the resource NAME of this vm; prints it
#   tell.sh later event|end      returns at once; a background process repeats it for `long`
#
# SECONDS is the longest time to spend; `long` is MAYFLY_FINISH_SECONDS (a day). A request
# without an answer is repeated whatever curl's exit code is, because a killed service, or
# a relay in front of a stopped one, may end a connection in any way. So every report may
# arrive twice; the service ignores repetitions.
#
# Exit code: 0 accepted; 1 no final answer in time; 2 refused permanently (4xx except 408,
# 425 and 429); 3 curl or settings are missing. `event` and `end` print the last HTTP
# status.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
# The runner kills every process that carries this variable when a job ends.
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT

sh=/bin/sh
case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
patience=$1
verb=$2
name=${3:-}

# detached COMMAND...: executes COMMAND in a new session, so that it survives the end of
# the login or call that started it. For use in the background only.
detached() {
    if command -v setsid >/dev/null 2>&1; then
        exec setsid "$@"
    fi
    if command -v perl >/dev/null 2>&1; then
        exec perl -e 'use POSIX (); exit 0 if getpgrp() == $$ && fork(); POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' \
            -- "$@"
    fi
    exec nohup "$@"
}

if [ "$patience" = later ]; then
    body=''
    if [ "$verb" = event ]; then
        body=$(cat)
    fi
    # shellcheck disable=SC2086  # may be a program and its first argument
    printf '%s\n' "$body" | detached $sh "$0" long "$verb" >/dev/null 2>&1 &
    exit 0
fi

MAYFLY_URL='' MAYFLY_VM_ID='' MAYFLY_FINISH_SECONDS=86400
# The job's user, if it is not the wrapper's, can read the job's token only.
token=$kit/wrapper.curlrc
[ -r "$token" ] || token=$kit/curlrc
if [ ! -r "$kit/mayfly.env" ] || [ ! -r "$token" ]; then
    echo "mayfly: no mayfly.env or curlrc beside $0" >&2
    exit 3
fi
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
    echo "mayfly: curl or settings are missing" >&2
    exit 3
fi

vm=$MAYFLY_URL/vms/$MAYFLY_VM_ID
body=''
case $verb in
event)
    body=$(cat)
    set -- --request POST --header 'Content-Type: application/json' --data-binary @- "$vm/events"
    ;;
end) set -- --request DELETE "$vm" ;;
get) set -- "$vm/$name" ;;
*) exit 3 ;;
esac
if [ "$patience" = long ]; then
    patience=$MAYFLY_FINISH_SECONDS
fi

# A clock in seconds. Not the time of day if possible, because a guest sets its clock
# while it boots.
now() {
    if read -r up _ 2>/dev/null </proc/uptime; then
        echo "${up%%.*}"
    else
        date +%s
    fi
}

# send PREFIX ARGUMENTS...: prints the answer, and the status on the last line. -q has to
# be first, because the job may have left a ~/.curlrc. -K keeps the token out of argv.
send() {
    prefix=$1
    shift
    # shellcheck disable=SC2086  # nothing, or `sudo -n`
    printf '%s\n' "$body" | $prefix "$curl" -q -K "$token" --silent --show-error --fail \
        --noproxy '*' --connect-timeout 2 --max-time 5 --write-out '\n%{http_code}' "$@"
}

newline='
'
system=$(uname -s)
end=$(($(now) + patience))
pause=0.2
while :; do
    answer=$(send '' "$@")
    result=$?
    # 7: no connection. Since macOS 15 the Local Network permission may be missing. Root
    # does not need it, and most images let their user become root without a password.
    if [ "$result" = 7 ] && [ "$system" = Darwin ] && sudo -n true 2>/dev/null; then
        answer=$(send 'sudo -n' "$@")
    fi
    status=${answer##*"$newline"}
    code=1
    case $status in
    2??) code=0 ;;
    408 | 425 | 429) ;;
    4??) code=2 ;;
    esac
    if [ "$code" != 1 ] || [ "$(now)" -ge "$end" ]; then
        break
    fi
    sleep "$pause" 2>/dev/null || sleep 1
    case $pause in
    0.2) pause=0.5 ;;
    0.5) pause=1 ;;
    8) pause=15 ;;
    15) ;;
    *) pause=$((pause * 2)) ;;
    esac
done
if [ "$verb" != get ]; then
    echo "$status"
elif [ "$code" = 0 ]; then
    printf '%s' "${answer%"$newline"*}"
fi
exit "$code"
