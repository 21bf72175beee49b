#!/bin/sh
# Runs the guest's job and reports its end to Mayfly.
#
# Started once by watch.sh. What it does depends on MAYFLY_RUNNER_KIND:
#
#   command   hook contract of a CI runner: job-started.sh, the job, job-completed.sh,
#             then the upload of log and result, then runner_finished
#   script    the payload sets up and runs a runner itself; then runner_finished
#   github    the payload is github-runner.sh, and GitHub's runner calls the hooks
#   gitea     the payload is gitea-runner.sh, which calls the hooks if Gitea's runner does not
#   buildkite the payload is buildkite-agent.sh; Buildkite's agent calls the hooks
#   none      reports that the guest is configured, nothing else
#
# The job is started only after Mayfly has permitted it: until then Mayfly may give this
# attempt up and repeat it on a fresh clone, afterwards it may not. Without the permission
# the guest powers off after MAYFLY_START_SECONDS.
#
# Mayfly destroys the VM after runner_finished: it is sent last, and is repeated for a day.
#
# The job runs through job.sh, as the user that boot.sh wrote into job.env. Whatever that
# user could write is data here: it is sent or shown, and never read as a script.
#
# On a Mac with a user logged in on the screen, only the payload runs in that session
# (see payload_in_session); the wrapper stays in its own.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 1
run=$kit/run
log=$run/job.log

chunk=32768         # bytes of log per request
log_cap=1048576     # bytes of log in total
tail_part=65536     # bytes of these for the end of a log that is too long
log_interval=2      # seconds between two checks of a growing log
patience=10         # seconds for one part of a log while the job runs
MAYFLY_START_SECONDS=420      # how long to wait for the permission to start the job

MAYFLY_RUNNER_KIND='' MAYFLY_ATTEMPT=''
sh=/bin/sh
system=$(uname -s)

# Creation with noclobber is the lock: of two wrappers, only one continues.
mkdir -p "$run" || exit 1
if ! (set -C && echo "$$" >"$run/wrapper.pid") 2>/dev/null; then
    echo "another wrapper holds $run/wrapper.pid"
    exit 75
fi
echo "$$" >"$run/wrapper.started"

MAYFLY_JOB_USER='' MAYFLY_SEPARATE=false
# shellcheck source=/dev/null
. "$kit/mayfly.env"
# shellcheck source=/dev/null
. "$kit/job.env"
mine=$run/job # belongs to the job's user

# tell SECONDS: posts the event on standard input, see tell.sh.
tell() {
    # shellcheck disable=SC2086  # may be a program and its first argument
    $sh "$kit/tell.sh" "$1" event >/dev/null
}

# event JSON [SECONDS]: posts an event; one that is not accepted at once is repeated in
# the background.
event() {
    echo "$1" | tell "${2:-3}" && return 0
    if [ "$?" = 1 ]; then
        echo "$1" | tell later
    else
        echo "not accepted: $1"
    fi
}

# send_bytes OFFSET COUNT: sends a part of the log. The offset counts from 0.
send_bytes() {
    {
        printf '{"type":"log","source":"job","data_base64":"'
        tail -c "+$(($1 + 1))" "$log" | head -c "$2" | base64 | tr -d '\n'
        printf '"}'
    } | tell "$patience"
}

log_size() {
    echo $(($(wc -c <"$log")))
}

# Sends the new part of the log, up to $1 bytes in total. $sent advances only past
# accepted parts, so that the next request repeats a lost one.
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

# Runs beside the job until the stop file exists. The signal only ends the pause: a
# request that is under way continues, so no part of the log is sent twice. Nothing may
# depend on the signal's trap: bash 5.2 loses a signal that arrives while it reads a "$(…)"
# ("unexpected EOF while looking for matching ')'"), and the caller may have ignored it.
stream_log() {
    online=''
    trap : TERM
    until told_to_stop; do
        sleep "$log_interval" &
        pause=$!
        if told_to_stop || ! wait "$pause"; then
            kill "$pause" 2>/dev/null
        fi
        # The runners of GitHub and Gitea print that they are idle. A lost report does no harm.
        case $MAYFLY_RUNNER_KIND in
        github) idle='Listening for Jobs' ;;
        gitea) idle='declare successfully' ;;
        *) idle='' ;;
        esac
        if [ -n "$idle" ] && [ -z "$online" ] && grep -q "$idle" "$log"; then
            online=1
            event '{"type":"runner_online"}'
        fi
        told_to_stop || send_new $((log_cap - tail_part))
    done
    exit 0
}

told_to_stop() {
    [ -e "$run/job.log.stop" ]
}

send_rest() {
    command -v base64 >/dev/null 2>&1 || return 0
    sent=$(cat "$run/job.log.sent" 2>/dev/null) || sent=0
    # Only the end is reported after this, and it has to wait for the service, too.
    patience=120
    # Fixed now, because background processes of the job may still write.
    size=$(log_size)
    if [ "$size" -gt "$log_cap" ]; then
        send_new $((log_cap - tail_part)) || return 1
        left_out=$((size - tail_part - sent))
        note=$(printf '\n[mayfly: %s bytes left out, the log is over %s]\n' "$left_out" "$log_cap" |
            base64 | tr -d '\n')
        echo '{"type":"log","source":"job","data_base64":"'"$note"'"}' | tell "$patience"
        sent=$((size - tail_part))
    fi
    send_new "$size"
}

# The job's user owns the log, because programs may open /dev/stdout again. The directory
# is the wrapper's, so the file cannot be replaced.
new_log() {
    cat "$run/prepare.log" >"$log"
    own "$log"
}

run_hook() {
    if command -v bash >/dev/null 2>&1; then
        bash -e "$kit/$1" </dev/null >>"$log" 2>&1
    else
        sh -e "$kit/$1" </dev/null >>"$log" 2>&1
    fi || :
}

short_sleep() {
    sleep 0.1 2>/dev/null || sleep 1
}

# --- the payload ----------------------------------------------------------------

# as_job MODE: runs job.sh as the job's user, in a session of its own if possible: a job
# that signals its process group must not end the wrapper. Neither the user's login shell
# nor its profile is started.
as_job() {
    mode=$1
    if [ -z "$MAYFLY_JOB_USER" ]; then
        # shellcheck disable=SC2086
        set -- $sh "$kit/job.sh" "$mode"
    elif [ "$system" = Darwin ]; then
        # Its `su` always starts the user's shell.
        set -- sudo -n -H -u "$MAYFLY_JOB_USER" -- /bin/sh "$kit/job.sh" "$mode"
    else
        set -- su -s /bin/sh -c "exec $sh $(quoted "$kit/job.sh") $mode" "$MAYFLY_JOB_USER"
    fi
    if command -v setsid >/dev/null 2>&1; then
        setsid "$@"
    elif command -v perl >/dev/null 2>&1; then
        # shellcheck disable=SC2016  # perl expands it
        perl -e 'use POSIX (); POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' -- "$@"
    else
        "$@"
    fi
}

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# own FILE...: gives files to the job's user.
own() {
    [ -z "$MAYFLY_JOB_USER" ] || chown -h "$MAYFLY_JOB_USER:" "$@"
}

# Runs the payload in the session of the user who is logged in on the screen: a one-shot
# agent of launchd runs job.sh. Sets $code, or fails if nothing was started.
#
# The wrapper itself stays outside: macOS asks the user on the screen before a program in
# that session may use the local network, and there is no user to answer. Programs that
# were started over SSH need no permission, so the final report can be sent from here.
payload_in_session() {
    domain=$(cat "$run/session" 2>/dev/null)
    case $domain in
    gui/*) ;;
    *) return 1 ;;
    esac
    rm -f "$mine/payload.end" "$mine/payload.pid"
    mkfifo "$mine/payload.end" && own "$mine/payload.end" || return 1
    launch_agent >"$run/mayfly.payload.plist"
    unload_agent
    if ! launchctl bootstrap "$domain" "$run/mayfly.payload.plist"; then
        return 1
    fi
    # The first writer of payload.pid decides: the payload, or this if it is not started.
    (
        tries=0
        while [ ! -e "$mine/payload.pid" ]; do
            tries=$((tries + 1))
            if [ "$tries" -gt 300 ] && (set -C && echo none >"$mine/payload.pid") 2>/dev/null; then
                echo none >"$mine/payload.end"
            fi
            short_sleep
        done
    ) &
    # End of file without a code: the payload was killed.
    IFS= read -r code <"$mine/payload.end" || code=137
    # If the file exists, the subshell has ended or is about to, and its pid may be reused.
    [ -e "$mine/payload.pid" ] || kill "$!" 2>/dev/null
    wait "$!" 2>/dev/null
    if [ "$code" = none ] || [ ! -e "$mine/payload.pid" ]; then
        unload_agent
        return 1
    fi
}

unload_agent() {
    tries=0
    while launchctl print "$domain/mayfly.payload" >/dev/null 2>&1 && [ "$tries" -lt 50 ]; do
        launchctl bootout "$domain/mayfly.payload" >/dev/null 2>&1
        tries=$((tries + 1))
        short_sleep
    done
}

xml() {
    printf '%s' "$1" | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g'
}

# Interactive, because launchd throttles processor and disk of other agents.
launch_agent() {
    cat <<END
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>Label</key><string>mayfly.payload</string>
    <key>ProgramArguments</key>
    <array>
        <string>/bin/sh</string>
        <string>$(xml "$kit/job.sh")</string>
        <string>session</string>
    </array>
    <key>RunAtLoad</key><true/>
    <key>KeepAlive</key><false/>
    <key>AbandonProcessGroup</key><true/>
    <key>ProcessType</key><string>Interactive</string>
    <key>StandardOutPath</key><string>$(xml "$mine/payload.log")</string>
    <key>StandardErrorPath</key><string>$(xml "$mine/payload.log")</string>
</dict>
</plist>
END
}

# The primary end signal: repeated until it is accepted, refused permanently, or the time
# is over.
finish() {
    echo "$1" >"$run/wrapper.exit"
    echo '{"type":"runner_finished","exit_code":'"$1"'}' | tell long || echo "runner_finished was not accepted"
}

# --- the start ------------------------------------------------------------------

# Seconds since some moment. Not the time of day where that can be helped: a guest sets
# its clock while it boots.
now() {
    if read -r up _ 2>/dev/null </proc/uptime; then
        echo "${up%%.*}"
    else
        date +%s
    fi
}

# ask COMMAND...: repeats a request until it is answered. Fails at $deadline or when it is
# refused permanently, and sets $why.
refused="Mayfly refused it: this attempt is over, or the vm is ending"
ask() {
    while :; do
        # If the guest cannot reach its API, Mayfly gives the permission over SSH or the agent.
        if [ "$(cat "$run/start" 2>/dev/null)" = "${MAYFLY_ATTEMPT:-none}" ]; then
            return 0
        fi
        "$@"
        case $? in
        0) return 0 ;;
        2)
            why=$refused
            return 1
            ;;
        3) sleep 1 ;;
        esac
        if [ "$(now)" -ge "$deadline" ]; then
            why="Mayfly did not permit it within $MAYFLY_START_SECONDS seconds"
            return 1
        fi
    done
}

configured() {
    echo '{"type":"guest_configured","attempt":'"${MAYFLY_ATTEMPT:-null}"',"separate_users":'"$MAYFLY_SEPARATE"'}' | tell 3
}

# Fetches the registration of the runner if it is not in the bundle: the seed's volume
# cannot be cleared, and root can read it. From the start of the job on, Mayfly refuses
# the request. The process that fetched it keeps it until the payload reads the pipe,
# then ends; so neither a file nor this shell's memory contains it while a job runs.
fetch_registration() {
    rm -f "$mine/registration" "$run/registration.fetched"
    mkfifo -m 600 "$mine/registration"
    own "$mine/registration"
    (
        # shellcheck disable=SC2086
        secret=$($sh "$kit/tell.sh" 3 get registration)
        echo "$?" >"$run/registration.code"
        mv -f "$run/registration.code" "$run/registration.fetched"
        [ -z "$secret" ] || printf '%s' "$secret" >"$mine/registration"
    ) &
    holder=$!
    while [ ! -s "$run/registration.fetched" ]; do
        short_sleep
    done
    fetched=$(cat "$run/registration.fetched")
    return "$fetched"
}

# The job can never be started: reported with the reason, and the vm ends. A guest that
# cannot report it powers off.
unusable() {
    words=$(printf '%s' "${1:-the job cannot be prepared}" | tr -c '[:alnum:][:space:]_.,:;/()=+*?!@-' '?' |
        tr '\n\r\t' '   ' | head -c 900)
    { echo "mayfly: $words" >/dev/console; } 2>/dev/null
    echo "$words" >"$run/not-started"
    if ! echo '{"type":"guest_failed","attempt":'"${MAYFLY_ATTEMPT:-0}"',"is_final":true,"detail":"'"$words"'"}' |
        tell "$MAYFLY_START_SECONDS"; then
        # shellcheck disable=SC2086
        $sh "$kit/power-off.sh"
    fi
    exit 0
}

# Without the permission, nothing was started and nothing will be: the next attempt runs
# on a fresh clone.
not_started() {
    echo "mayfly: the job was not started: $why" | tee -a "$run/boot.log"
    { echo "mayfly: the job was not started: $why" >/dev/console; } 2>/dev/null
    if command -v base64 >/dev/null 2>&1; then
        {
            printf '{"type":"log","source":"boot","data_base64":"'
            echo "mayfly: the job was not started: $why" | base64 | tr -d '\n'
            printf '"}'
        } | tell 2
    fi
    echo "$why" >"$run/not-started"
    # shellcheck disable=SC2086
    $sh "$kit/power-off.sh"
}

# Returns when the job may start. A guest that cannot power itself off continues to ask:
# the permission may have been given and its answer lost.
wait_for_start() {
    fetched=''
    holder=''
    case $MAYFLY_RUNNER_KIND in
    github | gitea | buildkite) [ ! -f "$mine/registration" ] || fetched=0 ;;
    *) fetched=0 ;;
    esac
    while :; do
        deadline=$(($(now) + MAYFLY_START_SECONDS))
        why=''
        if { [ "$fetched" = 0 ] || ask fetch_registration; } && ask configured; then
            rm -f "$run/not-started"
            return 0
        fi
        if not_started || [ "$why" = "$refused" ]; then
            [ -z "$holder" ] || kill "$holder" 2>/dev/null
            rm -f "$mine/registration"
            exit 0
        fi
        sleep 15
    done
}

# The template's readiness check, before anything of the job. Its result is also for boot.sh,
# which may be waiting for it.
check_ready() {
    [ -f "$kit/ready.env" ] || return 0
    # shellcheck disable=SC2086
    if seen=$($sh "$kit/ready.sh"); then
        event '{"type":"guest_checked","attempt":'"${MAYFLY_ATTEMPT:-0}$seen"'}' 10
        echo ready >"$run/ready"
        return 0
    fi
    seen=${seen:-nothing}
    echo "the guest is not ready: $seen"
    { echo "mayfly: the guest is not ready: $seen" >/dev/console; } 2>/dev/null
    echo "$seen" >"$run/not-started"
    echo "not ready: $seen" >"$run/ready.new"
    mv -f "$run/ready.new" "$run/ready"
    if ! echo '{"type":"guest_failed","attempt":'"${MAYFLY_ATTEMPT:-0}"',"check_failed":true,"detail":"'"$seen"'"}' |
        tell "$MAYFLY_START_SECONDS"; then
        # shellcheck disable=SC2086
        $sh "$kit/power-off.sh"
    fi
    exit 0
}

check_ready
as_job prepare </dev/null >"$run/prepare.log" 2>&1
prepared=$?
cat "$run/prepare.log"
# Nothing of the job has run yet: what its user's side says is what job.sh says.
if [ "$prepared" != 0 ]; then
    unusable "$(tail -n 1 "$run/prepare.log")"
fi
wait_for_start
if [ "$MAYFLY_RUNNER_KIND" = none ]; then
    exit 0
fi
# Written before the job starts, so that a later wrapper does not start it again.
: >"$run/payload.started"
case $MAYFLY_RUNNER_KIND in
command) ;;
script | github | gitea | buildkite)
    event '{"type":"runner_started"}'
    ;;
*)
    new_log
    echo "mayfly: unknown runner kind '$MAYFLY_RUNNER_KIND'" >>"$log"
    send_rest
    finish 127
    exit 0
    ;;
esac

new_log
rm -f "$run/job.log.sent" "$run/job.log.stop"
if [ "$MAYFLY_RUNNER_KIND" = command ]; then
    run_hook job-started.sh
fi
streamer=''
if command -v base64 >/dev/null 2>&1; then
    stream_log &
    streamer=$!
fi
if ! payload_in_session; then
    if [ -s "$run/session" ]; then
        echo "mayfly: launchd did not start the job in $(cat "$run/session"), it runs in the background session" |
            tee -a "$log"
    fi
    as_job run </dev/null >>"$log" 2>&1
    code=$?
fi
echo "payload ended with $code"
if [ -n "$streamer" ]; then
    : >"$run/job.log.stop"
    kill "$streamer" 2>/dev/null
    wait "$streamer" 2>/dev/null
fi
if [ "$MAYFLY_RUNNER_KIND" = command ]; then
    run_hook job-completed.sh
    send_rest || echo "the rest of the log was not accepted"
    event '{"type":"job_result","exit_code":'"$code"'}' 10
else
    send_rest || echo "the rest of the log was not accepted"
fi
finish "$code"
