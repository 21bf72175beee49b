#!/bin/sh
# Runs the guest's job and reports its end to Mayfly.
#
# Started once, detached, by boot.sh. What it does depends on MAYFLY_RUNNER_KIND:
#
#   command   hook contract of a CI runner: job-started.sh, the job, job-completed.sh,
#             then the upload of log and result, then runner_finished
#   script    the payload sets up and runs a runner itself; then runner_finished
#   github    the payload is github-runner.sh, and GitHub's runner calls the hooks
#   none      reports that the guest is configured, nothing else
#
# The job is started only after Mayfly has permitted it: until then Mayfly may give this
# attempt up and repeat it on a fresh clone, afterwards it may not. Without the permission
# the guest powers off after MAYFLY_START_SECONDS.
#
# Mayfly destroys the VM after runner_finished: it is sent last, and is repeated for a day.
#
# On a Mac with a user logged in on the screen, only the payload runs in that session
# (see payload_in_session); the wrapper stays in its own.

payload_path=${MAYFLY_PATH:-$PATH}
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset MAYFLY_PATH RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
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
supervised=''       # 1: boot.sh powers the guest off
MAYFLY_START_SECONDS=420      # how long to wait for the permission to start the job

MAYFLY_URL='' MAYFLY_VM_ID='' MAYFLY_RUNNER_KIND='' MAYFLY_ATTEMPT=''
sh=/bin/sh
system=$(uname -s)
if [ "${1:-}" = supervised ]; then
    supervised=1
fi

# Creation with noclobber is the lock: of two wrappers, only one continues.
mkdir -p "$run" || exit 1
if [ "${1:-}" != payload ]; then
    if ! (set -C && echo "$$" >"$run/wrapper.pid") 2>/dev/null; then
        echo "another wrapper holds $run/wrapper.pid"
        exit 1
    fi
    echo "$$" >"$run/wrapper.started"
fi

# shellcheck source=/dev/null
. "$kit/mayfly.env"

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
        # GitHub's runner prints that it is idle. A lost report does no harm.
        if [ "$MAYFLY_RUNNER_KIND" = github ] && [ -z "$online" ] && grep -q 'Listening for Jobs' "$log"; then
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

# --- macOS: the environment of a login shell ------------------------------------

# Over SSH and under launchd nothing has read ~/.zprofile, in which Homebrew and the tools
# of typical images extend the PATH. So this starts a login shell and takes what it
# exports; its output is discarded. It has a time limit, because it may wait for input.
read_login_environment() {
    rm -f "$run/login.env"
    command -v perl >/dev/null 2>&1 || return 0
    login_shell=${SHELL:-/bin/zsh}
    case ${login_shell##*/} in
    zsh | bash | sh | dash | ksh) ;;
    *) login_shell=/bin/zsh ;;
    esac
    # shellcheck disable=SC2016  # perl and the shells that are started expand it
    MAYFLY_VM_ID=$MAYFLY_VM_ID perl -e 'alarm shift; exec { $ARGV[0] } @ARGV; exit 127' -- 20 \
        "$login_shell" -l -c 'exec /bin/sh -c "$1" sh "$2"' mayfly 'export -p >"$1"' "$run/login.env" \
        </dev/null >/dev/null 2>&1
    # Read in a subshell first: a broken file would end this shell without a message.
    # shellcheck source=/dev/null
    if [ ! -s "$run/login.env" ] || ! (. "$run/login.env") >/dev/null 2>&1; then
        echo "the login shell $login_shell did not return its environment in time"
        rm -f "$run/login.env"
    fi
}

# The PATH of a job: the PATH of the login shell ($1), extended by the missing entries of
# the PATH of this script's caller ($2).
job_path() (
    all=$1
    set -f
    IFS=:
    for entry in /opt/homebrew/bin /opt/homebrew/sbin /usr/local/bin $2; do
        case :$all: in
        *":$entry:"*) ;;
        *)
            if [ -d "$entry" ]; then
                all=$all:$entry
            fi
            ;;
        esac
    done
    printf '%s\n' "$all"
)

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Every zsh reads ~/.zshenv, so processes that this script does not start (ssh, launchd)
# get the job's variables from there. Descendants of this script have them already,
# perhaps changed by the job, and must keep them. The job's own values stay in runner.env.
zshenv_block() {
    echo '# >>> mayfly >>>'
    echo "if [ \"\${MAYFLY_VM_ID:-}\" != $(quoted "$MAYFLY_VM_ID") ]; then"
    echo "    export MAYFLY_VM_ID=$(quoted "$MAYFLY_VM_ID") MAYFLY_URL=$(quoted "$MAYFLY_URL")"
    echo "    export MAYFLY_HOME=$(quoted "$kit")"
    echo "    export ACTIONS_RUNNER_HOOK_JOB_STARTED=$(quoted "$kit/job-started.sh")"
    echo "    export ACTIONS_RUNNER_HOOK_JOB_COMPLETED=$(quoted "$kit/job-completed.sh")"
    echo "    export PATH=$(quoted "$(login_path)")"
    echo "    if [ -r $(quoted "$kit/runner.env") ]; then"
    echo "        . $(quoted "$kit/runner.env")"
    echo '    fi'
    echo 'fi'
    echo '# <<< mayfly <<<'
}

login_path() (
    given=$payload_path
    set -- "$given"
    PATH=$given
    if [ -s "$run/login.env" ]; then
        # shellcheck source=/dev/null
        . "$run/login.env"
    elif [ -x /usr/libexec/path_helper ]; then
        eval "$(/usr/libexec/path_helper -s)"
    fi
    job_path "$PATH" "$1"
)

# Replaces Mayfly's block and changes nothing else, not even the file's mode. A block
# without its last line is not Mayfly's any more.
write_zshenv() {
    zshenv=${HOME:-/nonexistent}/.zshenv
    {
        if [ -f "$zshenv" ]; then
            awk '
                /^# >>> mayfly >>>$/ { printf "%s", held; held = $0 "\n"; inside = 1; next }
                inside && /^# <<< mayfly <<<$/ { held = ""; inside = 0; next }
                inside { held = held $0 "\n"; next }
                { print }
                END { printf "%s", held }' "$zshenv" || return 1
        fi
        zshenv_block
    } >"$run/zshenv" || return 1
    cmp -s "$run/zshenv" "$zshenv" || cat "$run/zshenv" >"$zshenv" || return 1
    rm -f "$run/zshenv"
}

# --- the payload ----------------------------------------------------------------

# The payload gets its own session if possible: a job that signals its process group must
# not end the wrapper.
run_payload() {
    if [ ! -f "$kit/payload" ]; then
        echo "mayfly: no payload in $kit" >>"$log"
        return 127
    fi
    chmod u+x "$kit/payload" 2>/dev/null
    # From here on in arguments, because the files that are read below may set any variable.
    set -- "$kit/payload"
    if [ "$(head -c 2 "$kit/payload" | tr -d '\0')" != '#!' ]; then
        set -- /bin/sh "$@"
    fi
    if command -v setsid >/dev/null 2>&1; then
        set -- "$(command -v setsid)" "$@"
    elif command -v perl >/dev/null 2>&1; then
        # Without PERL_BADLANG, perl may print a warning about the job's locale into its log.
        # shellcheck disable=SC2016  # perl expands it
        set -- "$(command -v env)" PERL_BADLANG=0 "$(command -v perl)" -e \
            'use POSIX (); delete $ENV{PERL_BADLANG}; POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' -- "$@"
    fi
    if [ "$system" = Darwin ]; then
        payload_path=$(login_path)
    fi
    set -- "$kit" "$MAYFLY_VM_ID" "$MAYFLY_URL" "$payload_path" "$@"
    (
        if [ "$system" = Darwin ] && [ -s "$run/login.env" ]; then
            # shellcheck source=/dev/null
            . "$run/login.env"
            unset RUNNER_TRACKING_ID
        fi
        MAYFLY_HOME=$1
        MAYFLY_VM_ID=$2
        MAYFLY_URL=$3
        ACTIONS_RUNNER_HOOK_JOB_STARTED=$1/job-started.sh
        ACTIONS_RUNNER_HOOK_JOB_COMPLETED=$1/job-completed.sh
        export MAYFLY_VM_ID MAYFLY_URL MAYFLY_HOME
        export ACTIONS_RUNNER_HOOK_JOB_STARTED ACTIONS_RUNNER_HOOK_JOB_COMPLETED
        umask 022
        PATH=$4
        shift 4
        cd "${HOME:-/}" 2>/dev/null || cd / || :
        if [ -r "$MAYFLY_HOME/runner.env" ]; then
            # shellcheck source=/dev/null
            . "$MAYFLY_HOME/runner.env"
        fi
        exec "$@"
    ) </dev/null >>"$log" 2>&1 9>&-
}

# Runs the payload in the session of the user who is logged in on the screen: a one-shot
# agent of launchd runs this script again with the argument "payload". Sets $code, or
# fails if nothing was started.
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
    rm -f "$run/payload.end" "$run/payload.pid"
    mkfifo "$run/payload.end" || return 1
    launch_agent >"$run/mayfly.payload.plist"
    unload_agent
    if ! launchctl bootstrap "$domain" "$run/mayfly.payload.plist"; then
        return 1
    fi
    # The first writer of payload.pid decides: the payload, or this if it is not started.
    (
        tries=0
        while [ ! -e "$run/payload.pid" ]; do
            tries=$((tries + 1))
            if [ "$tries" -gt 300 ] && (set -C && echo none >"$run/payload.pid") 2>/dev/null; then
                echo none >"$run/payload.end"
            fi
            short_sleep
        done
    ) &
    # End of file without a code: the payload was killed.
    IFS= read -r code <"$run/payload.end" || code=137
    # If the file exists, the subshell has ended or is about to, and its pid may be reused.
    [ -e "$run/payload.pid" ] || kill "$!" 2>/dev/null
    wait "$!" 2>/dev/null
    if [ "$code" = none ] || [ ! -e "$run/payload.pid" ]; then
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
        <string>$(xml "$kit/wrapper.sh")</string>
        <string>payload</string>
    </array>
    <key>EnvironmentVariables</key>
    <dict>
        <key>MAYFLY_PATH</key><string>$(xml "$payload_path")</string>
    </dict>
    <key>RunAtLoad</key><true/>
    <key>KeepAlive</key><false/>
    <key>AbandonProcessGroup</key><true/>
    <key>ProcessType</key><string>Interactive</string>
    <key>StandardOutPath</key><string>$(xml "$run/payload.log")</string>
    <key>StandardErrorPath</key><string>$(xml "$run/payload.log")</string>
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
    echo '{"type":"guest_configured","attempt":'"${MAYFLY_ATTEMPT:-null}"'}' | tell 3
}

# Fetches the registration of GitHub's runner if it is not in the bundle: the seed's volume
# cannot be cleared, and root can read it. From the start of the job on, Mayfly refuses
# the request. The process that fetched it keeps it until github-runner.sh reads the pipe,
# then ends; so neither a file nor this shell's memory contains it while a job runs.
fetch_registration() {
    rm -f "$run/registration" "$run/registration.fetched"
    mkfifo -m 600 "$run/registration"
    (
        # shellcheck disable=SC2086
        secret=$($sh "$kit/tell.sh" 3 get registration)
        echo "$?" >"$run/registration.code"
        mv -f "$run/registration.code" "$run/registration.fetched"
        [ -z "$secret" ] || printf '%s' "$secret" >"$run/registration"
    ) &
    holder=$!
    while [ ! -s "$run/registration.fetched" ]; do
        short_sleep
    done
    fetched=$(cat "$run/registration.fetched")
    return "$fetched"
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
    [ "$supervised" = 1 ] || $sh "$kit/power-off.sh"
}

# Returns when the job may start. A guest that cannot power itself off continues to ask:
# the permission may have been given and its answer lost.
wait_for_start() {
    fetched=''
    holder=''
    if [ -f "$run/registration" ] || [ "$MAYFLY_RUNNER_KIND" != github ]; then
        fetched=0
    fi
    while :; do
        deadline=$(($(now) + MAYFLY_START_SECONDS))
        why=''
        if { [ "$fetched" = 0 ] || ask fetch_registration; } && ask configured; then
            rm -f "$run/not-started"
            return 0
        fi
        if not_started || [ "$why" = "$refused" ]; then
            [ -z "$holder" ] || kill "$holder" 2>/dev/null
            rm -f "$run/registration"
            exit 0
        fi
        sleep 15
    done
}

if [ "${1:-}" = payload ]; then
    # Opened first: from then on the end of this process is noticed, however it ends.
    exec 9>"$run/payload.end" || exit 1
    (set -C && echo "$$" >"$run/payload.pid") 2>/dev/null || exit 0
    read_login_environment 9>&-
    run_payload
    echo "$?" >&9
    exit 0
fi
if [ "$system" = Darwin ]; then
    read_login_environment
    write_zshenv || echo "cannot write .zshenv"
fi

wait_for_start
if [ "$MAYFLY_RUNNER_KIND" = none ]; then
    exit 0
fi
# Written before the job starts, so that a later wrapper does not start it again.
: >"$run/payload.started"
case $MAYFLY_RUNNER_KIND in
command) ;;
script | github)
    event '{"type":"runner_started"}'
    ;;
*)
    : >"$log"
    echo "mayfly: unknown runner kind '$MAYFLY_RUNNER_KIND'" >>"$log"
    send_rest
    finish 127
    exit 0
    ;;
esac

: >"$log"
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
    run_payload
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
