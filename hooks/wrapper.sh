#!/bin/sh
# Runs the guest's one piece of work and tells Mayfly how it ended.
#
# Started once, detached, by boot.sh. What it does depends on MAYFLY_RUNNER_KIND:
#
#   command   hook contract of a CI runner: job-started.sh, the job, job-completed.sh,
#             then the upload of log and result, then runner_finished
#   script    the payload sets up and runs a runner itself; then runner_finished
#   github    the payload is github-runner.sh, and GitHub's runner calls the hooks
#   none      says that the guest is configured, nothing else
#
# The job is started only when Mayfly has acknowledged that it may be: until then this
# attempt may be given up and made again on a fresh clone, afterwards it may not. Without
# that word the guest waits for MAYFLY_START_SECONDS and powers off.
#
# runner_finished is the signal on which the VM is destroyed: it comes last and is
# repeated for a day.
#
# On a Mac with somebody logged in at the screen the payload alone moves to that session
# (see payload_in_session); the wrapper stays where it is.

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

chunk=32768         # bytes of log in one call
log_cap=1048576     # bytes of log in all
tail_part=65536     # of these, kept for the end of a log that is too long
log_interval=2      # seconds between looks at a growing log
patience=10         # seconds for one part of a log while the job runs
supervised=''       # 1: somebody else powers the guest off
MAYFLY_START_SECONDS=420      # how long the job waits for the word that it may start

MAYFLY_URL='' MAYFLY_VM_ID='' MAYFLY_RUNNER_KIND='' MAYFLY_ATTEMPT=''
sh=/bin/sh
system=$(uname -s)
if [ "${1:-}" = supervised ]; then
    supervised=1
fi

# Creation with noclobber is the lock: of two wrappers, one goes on.
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

# event JSON [SECONDS]: what is not taken at once is repeated in the background.
event() {
    echo "$1" | tell "${2:-3}" && return 0
    if [ "$?" = 1 ]; then
        echo "$1" | tell later
    else
        echo "not taken: $1"
    fi
}

# send_bytes OFFSET COUNT: one log call. The offset counts from 0.
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

# Runs beside the job until told to stop, by a file. The signal only breaks the pause: a
# call that is under way goes on, so no part of the log is sent twice. Nothing may depend
# on its trap: bash 5.2 loses one that comes while it reads a "$(…)" ("unexpected EOF
# while looking for matching ')'"), and whoever started us may have had it ignored.
stream_log() {
    online=''
    trap : TERM
    until told_to_stop; do
        sleep "$log_interval" &
        pause=$!
        if told_to_stop || ! wait "$pause"; then
            kill "$pause" 2>/dev/null
        fi
        # GitHub's runner says on its output that it is idle. A lost word costs nothing.
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
    # Nothing comes after it but the end, which has to wait for the service, too.
    patience=120
    # Fixed now: what the job left running in the background may still write.
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

# Over SSH and under launchd nothing has read ~/.zprofile, where Homebrew and the tools
# of typical images put themselves on the PATH. So a login shell is asked for all that
# it exports, and what it says on the way is thrown away. It has a time limit: nobody
# would see what it waits for.
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
    # Read in a subshell first: what does not read would end this shell without a word.
    # shellcheck source=/dev/null
    if [ ! -s "$run/login.env" ] || ! (. "$run/login.env") >/dev/null 2>&1; then
        echo "the login shell $login_shell gave no environment within its time"
        rm -f "$run/login.env"
    fi
}

# The PATH of a job, when a login shell has $1 and this script was given $2: the first,
# and what it lacks.
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

# ~/.zshenv is read by every zsh, so what is started in this guest past us (ssh, launchd)
# gets the job's variables from there. What descends from us has them already, changed
# by the job perhaps, and must keep them. The job's own values stay in runner.env.
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

# Replaces our block and leaves all else, the file's mode too, as it is. A block without
# its last line is not ours any more.
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

# The payload gets its own session where that is to be had: a job that signals its
# process group must not take the wrapper with it.
run_payload() {
    if [ ! -f "$kit/payload" ]; then
        echo "mayfly: no payload in $kit" >>"$log"
        return 127
    fi
    chmod u+x "$kit/payload" 2>/dev/null
    # From here on in arguments: what is read below may set any variable.
    set -- "$kit/payload"
    if [ "$(head -c 2 "$kit/payload" | tr -d '\0')" != '#!' ]; then
        set -- /bin/sh "$@"
    fi
    if command -v setsid >/dev/null 2>&1; then
        set -- "$(command -v setsid)" "$@"
    elif command -v perl >/dev/null 2>&1; then
        # With the job's locale, perl would begin by complaining about it in the job's log.
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

# The payload in the session of the user who is logged in at the screen: a one-shot
# agent of launchd runs this script again with the argument "payload". Sets
# $code, or fails when nothing was started.
#
# Why not the whole wrapper: macOS asks the person at the screen before something in
# that session may talk to the local network, and nobody is there to answer. What came
# in over SSH is not asked, so the last word to Mayfly is safe here.
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
    # Who writes payload.pid first decides: the payload, or this, when it never comes.
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
    # The end of the file without a word: it was killed.
    IFS= read -r code <"$run/payload.end" || code=137
    # Where that file is, it has ended or is about to; its number may be another's by now.
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

# Interactive, or launchd would hold back the job's processor and disk.
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

# The primary end signal: tried until it is taken, the vm is known to be gone, or the
# time is up.
finish() {
    echo "$1" >"$run/wrapper.exit"
    echo '{"type":"runner_finished","exit_code":'"$1"'}' | tell long || echo "runner_finished was never taken"
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

# Repeats a question until it is answered: `ask COMMAND...` fails at the end of $deadline
# and when it is refused for good, and says why in $why.
refused="Mayfly refused it: this attempt is over, or the vm is ending"
ask() {
    while :; do
        # Mayfly may have said so by the way that the kit came, where its API is out of reach.
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
            why="Mayfly did not allow it within $MAYFLY_START_SECONDS seconds"
            return 1
        fi
    done
}

configured() {
    echo '{"type":"guest_configured","attempt":'"${MAYFLY_ATTEMPT:-null}"'}' | tell 3
}

# Of GitHub's runner, where it is not in the kit: what is on the seed's volume stays
# there, and root can read it. From the start of the job on it is refused. The process
# that fetches it holds it until github-runner.sh reads the pipe, and ends; so neither a
# file nor this shell's memory has it while a job runs.
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

# Without an answer nothing was started and nothing will be: the next attempt is made on
# a fresh clone.
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

# Returns when the job may start. A guest that cannot power itself off goes on asking:
# it may have been allowed by now, and the answer was lost.
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
    # Opened first: from then on our end is seen, however it comes.
    exec 9>"$run/payload.end" || exit 1
    (set -C && echo "$$" >"$run/payload.pid") 2>/dev/null || exit 0
    read_login_environment 9>&-
    run_payload
    echo "$?" >&9
    exit 0
fi
if [ "$system" = Darwin ]; then
    read_login_environment
    write_zshenv || echo ".zshenv could not be written"
fi

wait_for_start
if [ "$MAYFLY_RUNNER_KIND" = none ]; then
    exit 0
fi
# Before anything of the job: whoever comes later does not start it again.
: >"$run/payload.started"
case $MAYFLY_RUNNER_KIND in
command) ;;
script | github)
    event '{"type":"runner_started"}'
    ;;
*)
    : >"$log"
    echo "mayfly: this kit cannot run a runner of kind '$MAYFLY_RUNNER_KIND'" >>"$log"
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
    send_rest || echo "the rest of the log was not taken"
    event '{"type":"job_result","exit_code":'"$code"'}' 10
else
    send_rest || echo "the rest of the log was not taken"
fi
finish "$code"
