#!/bin/sh
# Runs the guest's one piece of work and tells Mayfly how it ended.
#
# Started once, detached, by boot.sh. What it does depends on MAYFLY_RUNNER_KIND:
#
#   command   hook contract of a CI runner: job-started.sh, the job, job-completed.sh,
#             then the upload of log and result, then runner_finished
#   script    the payload sets up and runs a runner itself; then runner_finished
#   none      says that the guest is configured, nothing else
#
# runner_finished is the signal on which the VM is destroyed: it comes last and is
# repeated for minutes. Everything before it may be lost without harm.

payload_path=${MAYFLY_PATH:-$PATH}
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset MAYFLY_PATH RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 1
run=$kit/run
log=$run/job.log

chunk=32768         # bytes of log in one call
log_cap=1048576     # bytes of log in all
tail_part=65536     # of these, kept for the end of a log that is too long
log_interval=2      # seconds between looks at a growing log
MAYFLY_FINISH_SECONDS=86400   # how long runner_finished is tried (the service may be away); mayfly.env may say otherwise

MAYFLY_URL='' MAYFLY_VM_ID='' MAYFLY_RUNNER_KIND=''

# Creation with noclobber is the lock: of two wrappers, one goes on.
mkdir -p "$run" || exit 1
if ! (set -C && echo "$$" >"$run/wrapper.pid") 2>/dev/null; then
    echo "another wrapper holds $run/wrapper.pid"
    exit 1
fi
echo "$$" >"$run/wrapper.started"

# shellcheck source=/dev/null
. "$kit/mayfly.env"

curl=''
for candidate in /usr/bin/curl /opt/homebrew/bin/curl /usr/local/bin/curl; do
    if [ -x "$candidate" ]; then
        curl=$candidate
        break
    fi
done

# Posts the event on standard input; prints the HTTP status; fails unless it is 2xx.
post() {
    if [ -z "$curl" ]; then
        cat >/dev/null
        return 1
    fi
    "$curl" -q -K "$kit/curlrc" --silent --show-error --fail --noproxy '*' \
        --connect-timeout 2 --max-time 5 --retry "${1:-2}" --retry-delay 1 --retry-connrefused \
        --output /dev/null --write-out '%{http_code}' \
        --request POST --header 'Content-Type: application/json' \
        --data-binary @- "$MAYFLY_URL/vms/$MAYFLY_VM_ID/events"
}

event() {
    echo "$1" | post >/dev/null || echo "not taken: $1"
}

# send_bytes OFFSET COUNT: one log call. The offset counts from 0.
send_bytes() {
    {
        printf '{"type":"log","source":"job","data_base64":"'
        tail -c "+$(($1 + 1))" "$log" | head -c "$2" | base64 | tr -d '\n'
        printf '"}'
    } | post >/dev/null
}

log_size() {
    echo $(($(wc -c <"$log")))
}

# Sends what is new in the log, up to $1 bytes of it in all. $sent moves only past
# what was taken, so that a lost call is made good by the next.
sent=0
send_new() {
    upto=$(log_size)
    if [ "$upto" -gt "$1" ]; then
        upto=$1
    fi
    while [ "$sent" -lt "$upto" ]; do
        count=$((upto - sent))
        if [ "$count" -gt "$chunk" ]; then
            count=$chunk
        fi
        send_bytes "$sent" "$count" || return 1
        sent=$((sent + count))
        echo "$sent" >"$run/job.log.sent"
    done
}

# Runs beside the job until told to stop. The signal breaks the pause but never a call
# that is under way, so no part of the log is sent twice.
stream_log() {
    stop=''
    trap 'stop=1' TERM
    while [ -z "$stop" ]; do
        sleep "$log_interval" &
        pause=$!
        [ -n "$stop" ] || wait "$pause"
        kill "$pause" 2>/dev/null
        [ -n "$stop" ] || send_new $((log_cap - tail_part))
    done
    exit 0
}

send_rest() {
    command -v base64 >/dev/null 2>&1 || return 0
    sent=$(cat "$run/job.log.sent" 2>/dev/null) || sent=0
    # Fixed now: what the job left running in the background may still write.
    size=$(log_size)
    if [ "$size" -gt "$log_cap" ]; then
        send_new $((log_cap - tail_part)) || return 1
        left_out=$((size - tail_part - sent))
        note=$(printf '\n[mayfly: %s bytes left out, the log is over %s]\n' "$left_out" "$log_cap" |
            base64 | tr -d '\n')
        echo '{"type":"log","source":"job","data_base64":"'"$note"'"}' | post >/dev/null
        sent=$((size - tail_part))
    fi
    send_new "$size"
}

run_hook() {
    if command -v bash >/dev/null 2>&1; then
        bash -e "$kit/$1" </dev/null >>"$log" 2>&1
    else
        sh -e "$kit/$1" </dev/null >>"$log" 2>&1
    fi || :
}

# The payload gets its own session where that is to be had: a job that signals its
# process group must not take the wrapper with it.
run_payload() {
    if [ ! -f "$kit/payload" ]; then
        echo "mayfly: no payload in $kit" >>"$log"
        return 127
    fi
    chmod u+x "$kit/payload" 2>/dev/null
    new_session=$(command -v setsid)
    interpreter=/bin/sh
    if [ "$(head -c 2 "$kit/payload" | tr -d '\0')" = '#!' ]; then
        interpreter=''
    fi
    (
        MAYFLY_HOME=$kit
        ACTIONS_RUNNER_HOOK_JOB_STARTED=$kit/job-started.sh
        ACTIONS_RUNNER_HOOK_JOB_COMPLETED=$kit/job-completed.sh
        export MAYFLY_VM_ID MAYFLY_URL MAYFLY_HOME
        export ACTIONS_RUNNER_HOOK_JOB_STARTED ACTIONS_RUNNER_HOOK_JOB_COMPLETED
        umask 022
        PATH=$payload_path
        cd "${HOME:-/}" 2>/dev/null || cd / || :
        if [ -r "$kit/runner.env" ]; then
            set -a
            # shellcheck source=/dev/null
            . "$kit/runner.env"
            set +a
        fi
        # shellcheck disable=SC2086  # both may be empty
        exec $new_session $interpreter "$kit/payload"
    ) </dev/null >>"$log" 2>&1
}

# The primary end signal: tried until it is taken, the vm is known to be gone, or the
# time is up.
finish() {
    echo "$1" >"$run/wrapper.exit"
    deadline=$(($(date +%s) + MAYFLY_FINISH_SECONDS))
    pause=1
    while :; do
        status=$(echo '{"type":"runner_finished","exit_code":'"$1"'}' | post 0) && return 0
        case $status in
        404 | 410) return 0 ;;
        esac
        if [ -z "$curl" ] || [ "$(date +%s)" -ge "$deadline" ]; then
            echo "runner_finished was never taken"
            return 1
        fi
        sleep "$pause"
        if [ "$pause" -lt 15 ]; then
            pause=$((pause * 2))
        fi
    done
}

event '{"type":"guest_configured"}'
case $MAYFLY_RUNNER_KIND in
none)
    exit 0
    ;;
command | script) ;;
*)
    : >"$log"
    echo "mayfly: this kit cannot run a runner of kind '$MAYFLY_RUNNER_KIND'" >>"$log"
    send_rest
    finish 127
    exit 0
    ;;
esac

: >"$log"
rm -f "$run/job.log.sent"
if [ "$MAYFLY_RUNNER_KIND" = command ]; then
    run_hook job-started.sh
fi
streamer=''
if command -v base64 >/dev/null 2>&1; then
    stream_log &
    streamer=$!
fi
run_payload
code=$?
echo "payload ended with $code"
if [ -n "$streamer" ]; then
    kill "$streamer" 2>/dev/null
    wait "$streamer" 2>/dev/null
fi
if [ "$MAYFLY_RUNNER_KIND" = command ]; then
    run_hook job-completed.sh
    send_rest || echo "the rest of the log was not taken"
    event '{"type":"job_result","exit_code":'"$code"'}'
else
    send_rest || echo "the rest of the log was not taken"
fi
finish "$code"
