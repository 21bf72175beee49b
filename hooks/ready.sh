#!/bin/sh
# Repeats the template's readiness check until it succeeds or its time is over.
#
# Started by wrapper.sh before the job is prepared, as the wrapper's user. It runs in the
# guest because the host cannot reach a port of every guest: an isolated one has no route
# to the host, and a user network forwards SSH alone.
#
# Settings, from ready.env:
#
#   MAYFLY_READY            http, tcp or exec
#   MAYFLY_READY_PORT       port of http and tcp
#   MAYFLY_READY_PATH, MAYFLY_READY_EXPECT      http: what is requested, text of the answer
#   MAYFLY_READY_VERSION_PATH, MAYFLY_READY_STATE_PATH    http: where the service tells its
#                           version and its state, once the check has succeeded
#   MAYFLY_READY_COMMAND    exec: the command
#   MAYFLY_READY_INTERVAL   pause between two checks, in seconds
#   MAYFLY_READY_SECONDS    time limit
#
# Exit code 0: it succeeded; prints members of a JSON object, such as `,"state":2`. Exit
# code 1: it did not in time; prints what was seen last. All that a service says passes
# `plain`, so it can be neither long nor anything else than text.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 1
work=$kit/run/ready.work
sh=/bin/sh

most_bytes=65536    # of an answer
request_limit=5     # seconds for one request
command_limit=30    # seconds for one run of the command

MAYFLY_READY='' MAYFLY_READY_PORT='' MAYFLY_READY_PATH='' MAYFLY_READY_EXPECT=''
MAYFLY_READY_VERSION_PATH='' MAYFLY_READY_STATE_PATH='' MAYFLY_READY_COMMAND=''
MAYFLY_READY_INTERVAL=2 MAYFLY_READY_SECONDS=60 MAYFLY_PATH=''
# shellcheck source=/dev/null
. "$kit/ready.env" || exit 1
# shellcheck source=/dev/null
. "$kit/job.env" || exit 1

# Seconds since some moment. Not the time of day where that can be helped: a guest sets
# its clock while it boots.
now() {
    if read -r up _ 2>/dev/null </proc/uptime; then
        echo "${up%%.*}"
    else
        date +%s
    fi
}

short_sleep() {
    sleep 0.1 2>/dev/null || sleep 1
}

# plain BYTES: the beginning of standard input as one line that needs no quoting in JSON.
plain() {
    LC_ALL=C tr '\n\r\t' '   ' | LC_ALL=C tr -c "[:alnum:] _.,:;/()=+*?!@~'-" '?' | LC_ALL=C head -c "$1" |
        sed 's/^ *//; s/ *$//'
}

# --- http ---------------------------------------------------------------------

curl=''
for candidate in /usr/bin/curl /opt/homebrew/bin/curl /usr/local/bin/curl; do
    if [ -x "$candidate" ]; then
        curl=$candidate
        break
    fi
done

# get PATH: requests it, directly. Sets $status, empty without a whole answer. The answer is
# cut off by a pipe, because not every version of curl can limit a body of unknown size.
get() {
    status=''
    "$curl" -q --silent --show-error --include --globoff --noproxy '*' --connect-timeout 2 \
        --max-time "$request_limit" "http://127.0.0.1:$MAYFLY_READY_PORT$1" \
        </dev/null 2>"$work/error" | head -c "$most_bytes" >"$work/answer"
    # Where it was cut off, curl failed to write the rest.
    if [ -s "$work/error" ] && [ "$(($(wc -c <"$work/answer")))" -lt "$most_bytes" ]; then
        return
    fi
    status=$(head -n 1 "$work/answer" | LC_ALL=C sed -n 's,^HTTP/[0-9.]* \([0-9][0-9][0-9]\).*,\1,p')
}

body() {
    LC_ALL=C sed '1,/^[[:space:]]*$/d' "$work/answer"
}

http_check() {
    if [ -z "$curl" ]; then
        seen='curl is missing in this guest'
        return 1
    fi
    get "$MAYFLY_READY_PATH"
    case $status in
    2??) ;;
    '')
        seen="no answer: $(plain 200 <"$work/error")"
        return 1
        ;;
    *)
        seen="HTTP status $status"
        return 1
        ;;
    esac
    if [ -n "$MAYFLY_READY_EXPECT" ] && ! body | LC_ALL=C grep -qF -e "$MAYFLY_READY_EXPECT"; then
        seen="HTTP status $status without the expected text: $(body | plain 200)"
        return 1
    fi
}

# Like get, and repeated while there is no answer.
get_patiently() {
    for _ in 1 2 3; do
        get "$1"
        [ -z "$status" ] || return
    done
}

# The service is ready, whatever it answers here: what it does not tell is left out.
observe() {
    if [ -n "$MAYFLY_READY_VERSION_PATH" ]; then
        get_patiently "$MAYFLY_READY_VERSION_PATH"
        case $status in
        2??)
            version=$(body | LC_ALL=C tr -d '\n' |
                LC_ALL=C sed -n 's/.*"version"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p')
            if [ -z "$version" ]; then
                # A line of text, or a JSON string.
                version=$(body | head -n 1 |
                    LC_ALL=C sed 's/^[[:space:]]*"//; s/"[[:space:]]*$//; /^[[:space:]]*[{[<]/d')
            fi
            version=$(printf '%s' "$version" | plain 100)
            [ -z "$version" ] || printf ',"version":"%s"' "$version"
            ;;
        esac
    fi
    if [ -n "$MAYFLY_READY_STATE_PATH" ]; then
        get_patiently "$MAYFLY_READY_STATE_PATH"
        case $status in
        2??)
            # One member a line; the first one is the runner's.
            state=$(body | LC_ALL=C tr '{},' '\n' |
                LC_ALL=C sed -n 's/^[[:space:]]*"state"[[:space:]]*:[[:space:]]*\([0-9]\{1,4\}\)[[:space:]]*$/\1/p' |
                head -n 1)
            # JSON has no leading zeros.
            state=$(printf '%s' "$state" | sed 's/^0*\([0-9]\)/\1/')
            [ -z "$state" ] || printf ',"state":%s' "$state"
            ;;
        esac
    fi
}

# --- tcp ----------------------------------------------------------------------

# The kernel's table of listening sockets is read where there is one: a connection could
# disturb the service, and would count for a service on 127.0.0.1 alone.
tcp_check() {
    seen='no process listens'
    if [ -r /proc/net/tcp ]; then
        hex=$(printf '%04X' "$MAYFLY_READY_PORT")
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
            grep -q "^ *[0-9]*: [0-9A-F]*:$hex [0-9A-F]*:0000 0A "
    else
        nc -z -G 2 127.0.0.1 "$MAYFLY_READY_PORT" </dev/null >/dev/null 2>&1
    fi
}

# --- exec ---------------------------------------------------------------------

# detached COMMAND...: executes COMMAND in a new session, so that it can be killed with its
# children. For use in the background only.
detached() {
    if command -v setsid >/dev/null 2>&1; then
        exec setsid "$@"
    fi
    if command -v perl >/dev/null 2>&1; then
        exec perl -e 'use POSIX (); exit 0 if getpgrp() == $$ && fork(); POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' \
            -- "$@"
    fi
    exec "$@"
}

# In a session of its own. `tail` ends with the last process that has the output, so
# only the file with the code tells that the command has ended.
if [ "${1:-}" = command ]; then
    {
        (
            PATH=$MAYFLY_PATH
            export PATH
            exec /bin/sh -c "$MAYFLY_READY_COMMAND"
        )
        echo "$?" >"$work/code.new"
        mv -f "$work/code.new" "$work/code"
    } </dev/null 2>&1 | tail -c 2048 >"$work/output"
    : >"$work/done"
    exit 0
fi

exec_check() {
    rm -f "$work/code" "$work/output" "$work/done"
    # shellcheck disable=SC2086  # may be a program and its first argument
    detached $sh "$kit/ready.sh" command </dev/null >/dev/null 2>&1 &
    group=$!
    limit=$(($(now) + command_limit))
    # Like a request, the last one may exceed the time limit somewhat.
    if [ "$limit" -gt "$((end + request_limit))" ]; then
        limit=$((end + request_limit))
    fi
    until [ -s "$work/code" ]; do
        if [ "$(now)" -ge "$limit" ]; then
            kill -9 "-$group" 2>/dev/null || kill -9 "$group" 2>/dev/null
            wait "$group" 2>/dev/null
            seen='the command did not end in time'
            return 1
        fi
        short_sleep
    done
    read -r code <"$work/code"
    if [ "$code" = 0 ]; then
        return 0
    fi
    # What it started may keep the output open.
    tries=0
    until [ -e "$work/done" ] || [ "$tries" -gt 10 ]; do
        tries=$((tries + 1))
        short_sleep
    done
    kill -9 "-$group" 2>/dev/null
    wait "$group" 2>/dev/null
    seen="exit code $code: $(tail -n 1 "$work/output" 2>/dev/null | plain 200)"
    return 1
}

# --- the loop -----------------------------------------------------------------

mkdir -p "$work" || exit 1
trap 'rm -rf "$work"' EXIT
end=$(($(now) + MAYFLY_READY_SECONDS))
seen=nothing
while :; do
    case $MAYFLY_READY in
    http) http_check ;;
    tcp) tcp_check ;;
    exec) exec_check ;;
    *)
        seen="unknown check '$MAYFLY_READY'"
        false
        ;;
    esac && break
    if [ "$(($(now) + MAYFLY_READY_INTERVAL))" -gt "$end" ]; then
        printf '%s' "$seen" | plain 400
        exit 1
    fi
    sleep "$MAYFLY_READY_INTERVAL"
done
if [ "$MAYFLY_READY" = http ]; then
    observe
fi
exit 0
