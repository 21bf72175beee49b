#!/bin/sh
# Entry point of the bootstrap bundle in the guest: called by the seed (as root), over
# SSH, or through the agent.
#
# Reports "guest ready", gives the job's files to the job's user, starts watch.sh, which
# starts wrapper.sh, detached from this session, and returns. Exit 0 means that the wrapper
# is (or was) running; exit 4, over SSH and through the agent, that the template's readiness
# check did not succeed. The wrapper reports "guest configured", and starts the job once that
# was acknowledged. What keeps the job from starting is reported at once (guest_failed).
#
# The wrapper stays the user of this script. If that is root, the job runs as the
# template's user, who can neither read the wrapper's token nor write the wrapper's files
# nor signal its processes. No profile, login shell or home of that user is used before
# the wrapper runs.
#
#   kit/                    the bundle: this script's directory
#     boot.sh watch.sh wrapper.sh ready.sh job.sh tell.sh power-off.sh job-started.sh job-completed.sh
#     mayfly.env github.env gitea.env buildkite.env          settings, for all users
#     ready.env             the template's readiness check, if it has one
#     job.env               settings that this script writes: the job's user, PATH
#     wrapper.curlrc        the wrapper's token
#     curlrc runner.env payload                              of the job's user: the job's token,
#                           its environment, the job
#     ca-extra.pem ca-bundle.pem                             certificates: the host's additional
#                           ones, and those with the guest's own, which this script writes
#     registration          secret of the runner of a CI system
#     run/                  files that the wrapper writes: pid, exit code, logs
#     run/job/              of the job's user: files that the job's side writes; the
#                           registration is moved here, where that user can remove it
#
# Calling it again is safe: one bundle runs one wrapper, once.
#
# Guests are Linux and macOS: this needs a POSIX shell (bash 3.2 on macOS) and tools that
# both systems have, with options that both support.

# The payload gets the PATH of this script's caller, too; the scripts use the system's.
given_path=$PATH
PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
# The runner kills every process that carries this variable when a job ends.
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 1
run=$kit/run
sh=/bin/sh
MAYFLY_RUNNER_USER='' MAYFLY_ATTEMPT='' MAYFLY_HANDOVER=''

say() {
    echo "mayfly boot: $*" >&2
    if [ -d "$run" ]; then
        echo "$*" >>"$run/boot.log"
    fi
}

die() {
    # The last line that a caller over SSH sees is the reason.
    say "$*"
    send_log 2>/dev/null
    fail "$*" 2>/dev/null
    exit 1
}

# Reports that this guest cannot run its job. A guest that cannot report it and has no
# caller that sees the exit code shows it on its console and powers off.
fail() {
    words=$(printf '%s' "$*" | tr -c '[:alnum:][:space:]_.,:;/()=+*?!@-' '?' | tr '\n\r\t' '   ' | head -c 900)
    if echo '{"type":"guest_failed","attempt":'"${MAYFLY_ATTEMPT:-0}"',"detail":"'"$words"'"}' | tell 10; then
        return 0
    fi
    if [ "$MAYFLY_HANDOVER" = seed ]; then
        { echo "mayfly boot: $*" >/dev/console; } 2>/dev/null
        $sh "$kit/power-off.sh"
    fi
}

# Posts the event on standard input, within $1 seconds.
tell() {
    # shellcheck disable=SC2086  # may be a program and its first argument
    $sh "$kit/tell.sh" "$1" event >/dev/null
}

send_log() {
    [ -s "$run/boot.log" ] && [ -r "$kit/tell.sh" ] && command -v base64 >/dev/null 2>&1 || return 0
    {
        printf '{"type":"log","source":"boot","data_base64":"'
        tail -c 32768 "$run/boot.log" | base64 | tr -d '\n'
        printf '"}'
    } | tell 5 || :
}

short_sleep() {
    sleep 0.1 2>/dev/null || sleep 1
}

# The wrapper writes its pid first. A dead pid without an exit code means that a reboot
# or a crash ended the wrapper: it may be started again unless it had started the job.
wrapper_pid=''
wrapper_seen() {
    [ -s "$run/wrapper.exit" ] && return 0
    [ -s "$run/wrapper.pid" ] || return 1
    wrapper_pid=$(cat "$run/wrapper.pid" 2>/dev/null) || return 1
    # A zombie has no command line.
    if [ -r "/proc/$wrapper_pid/cmdline" ] && [ -z "$(tr -d '\0' <"/proc/$wrapper_pid/cmdline")" ]; then
        return 1
    fi
    kill -0 "$wrapper_pid" 2>/dev/null
}

# detached COMMAND...: executes COMMAND in a new session, so that it survives the end of
# the login or call that started it. For use in the background only.
detached() {
    if command -v setsid >/dev/null 2>&1; then
        exec setsid "$@"
    fi
    # macOS has no setsid(1), and its nohup leaves not only the terminal but also the
    # login session.
    if command -v perl >/dev/null 2>&1; then
        exec perl -e 'use POSIX (); exit 0 if getpgrp() == $$ && fork(); POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' \
            -- "$@"
    fi
    exec nohup "$@"
}

# Most programs take one file with all the authorities that they trust, so the host's
# additional ones are appended to the guest's own. All users may read both files.
write_ca_bundle() {
    [ -f "$kit/ca-extra.pem" ] || return 0
    rm -f "$kit/ca-bundle.new"
    for own in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem \
        /etc/ssl/cert.pem; do
        if [ -s "$own" ]; then
            cat "$own" >"$kit/ca-bundle.new" || return 1
            # The last line may have no end.
            echo >>"$kit/ca-bundle.new" || return 1
            break
        fi
    done
    cat "$kit/ca-extra.pem" >>"$kit/ca-bundle.new" &&
        chmod 0644 "$kit/ca-extra.pem" "$kit/ca-bundle.new" &&
        mv -f "$kit/ca-bundle.new" "$kit/ca-bundle.pem"
}

# Finds the session in which wrapper.sh runs the job. On a Mac, only the session of a
# user who is logged in on the screen has an unlocked keychain, simulators and a window
# server. It starts some time after the SSH server, so this waits for it if automatic
# login is on.
find_session() {
    rm -f "$run/session"
    [ "$(uname -s)" = Darwin ] && command -v launchctl >/dev/null 2>&1 || return 0
    domain=gui/$(id -u "$user")
    auto=$(defaults read /Library/Preferences/com.apple.loginwindow autoLoginUser 2>/dev/null)
    tries=0
    until launchctl print "$domain" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$auto" != "$user" ] || [ "$tries" -gt 60 ]; then
            say "no login session of $user (automatic login: ${auto:-nobody}): the job runs in the" \
                "background session, without the login keychain and without windows"
            return 0
        fi
        sleep 1
    done
    echo "$domain" >"$run/session"
    say "the job runs in the login session of $user"
}

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Whether the job's user can become root without a password: then the wrapper's files are
# not out of its reach.
becomes_root() {
    command -v sudo >/dev/null 2>&1 || return 1
    if [ "$(uname -s)" = Darwin ]; then
        sudo -n -u "$user" sudo -n true
    else
        su -s /bin/sh -c 'sudo -n true' "$user"
    fi </dev/null >/dev/null 2>&1
}

# Over SSH and through the agent, the end of this script tells that the guest is provisioned,
# so it waits for the readiness check, which the wrapper runs. After a seed nothing waits for
# this script, and what the guest starts after it must not wait either.
await_ready() {
    [ "$MAYFLY_HANDOVER" != seed ] && [ -f "$kit/ready.env" ] || return 0
    while [ ! -s "$run/ready" ]; do
        if ! wrapper_seen && [ ! -s "$run/ready" ]; then
            die "the wrapper ended before the readiness check"
        fi
        short_sleep
    done
    seen=$(cat "$run/ready")
    if [ "$seen" != ready ]; then
        send_log 2>/dev/null
        say "$seen"
        exit 4
    fi
}

mkdir -p "$run" || exit 1
# Read in a subshell first: a broken file would end this shell without a message.
# shellcheck source=/dev/null
if ! (. "$kit/mayfly.env") >/dev/null 2>&1; then
    die "cannot read mayfly.env in $kit"
fi
# shellcheck source=/dev/null
. "$kit/mayfly.env"
for file in wrapper.curlrc watch.sh wrapper.sh ready.sh job.sh tell.sh; do
    if [ ! -r "$kit/$file" ]; then
        die "no $file in $kit"
    fi
done

ready='{"type":"guest_ready"}'
echo "$ready" | tell 2
case $? in
0) ;;
1)
    say "guest_ready was not accepted yet; it is repeated"
    echo "$ready" | tell later
    ;;
3) die "curl is missing in this guest, or the settings in $kit are broken" ;;
*) say "cannot report guest_ready" ;;
esac

# Two concurrent calls, by the seed and over SSH: the second waits for the first.
tries=0
until wrapper_seen || (set -C && echo "$$" >"$run/boot.lock") 2>/dev/null; do
    other=$(cat "$run/boot.lock" 2>/dev/null)
    if [ -n "$other" ] && ! kill -0 "$other" 2>/dev/null; then
        rm -f "$run/boot.lock"
    fi
    tries=$((tries + 1))
    if [ "$tries" -gt 900 ]; then
        die "another boot.sh does not end"
    fi
    short_sleep
done
if [ "$(cat "$run/boot.lock" 2>/dev/null)" = "$$" ]; then
    trap 'rm -f "$run/boot.lock"' EXIT
fi
if wrapper_seen; then
    say "the wrapper was already started, nothing to do"
    await_ready
    exit 0
fi
if [ -e "$run/payload.started" ]; then
    die "the job was started before and its result is not known: it is not started again"
fi
rm -f "$run/wrapper.pid" "$run/wrapper.started" "$run/ready"

me=$(id -un)
user=$me
if [ -n "$MAYFLY_RUNNER_USER" ] && [ "$MAYFLY_RUNNER_USER" != "$me" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "not root: running as $me instead of $MAYFLY_RUNNER_USER"
    elif id -u "$MAYFLY_RUNNER_USER" >/dev/null 2>&1; then
        user=$MAYFLY_RUNNER_USER
    else
        die "no user $MAYFLY_RUNNER_USER in this guest"
    fi
fi
separate=false
if [ "$user" = "$me" ]; then
    say "the wrapper and the job are one user, $me: the job can report in the wrapper's name"
elif [ "$(id -u "$user")" = 0 ] || becomes_root; then
    say "$user can become root: the job can report in the wrapper's name"
else
    separate=true
fi

write_ca_bundle || die "cannot write ca-bundle.pem in $kit"
find_session
mkdir -p "$run/job" || die "cannot make $run/job"
# Removing a file needs write access to its directory.
if [ -f "$kit/registration" ]; then
    mv -f "$kit/registration" "$run/job/registration" || die "cannot move the registration into $run/job"
fi
{
    echo "MAYFLY_JOB_USER=$(if [ "$user" != "$me" ]; then quoted "$user"; fi)"
    echo "MAYFLY_SEPARATE=$separate"
    echo "MAYFLY_PATH=$(quoted "$given_path")"
} >"$kit/job.env" || die "cannot write $kit/job.env"

# What is not listed stays as it was delivered: for its owner only.
chmod 0755 "$kit" "$kit"/*.sh "$run"
chmod 0644 "$kit/mayfly.env" "$kit/job.env"
chmod 0600 "$kit/wrapper.curlrc"
chmod 0700 "$run/job"
for settings in "$kit/github.env" "$kit/gitea.env" "$kit/buildkite.env"; do
    [ ! -f "$settings" ] || chmod 0644 "$settings"
done
for file in curlrc runner.env payload run/job run/job/registration; do
    if [ "$user" != "$me" ] && [ -e "$kit/$file" ]; then
        chown -h "$user:" "$kit/$file" || die "cannot give $file to $user"
    fi
done

# All three streams are redirected, otherwise an SSH client would wait for them.
# shellcheck disable=SC2086  # may be a program and its first argument
detached $sh "$kit/watch.sh" </dev/null >>"$run/wrapper.log" 2>&1 &

tries=0
while [ ! -s "$run/wrapper.started" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        tail -c 4096 "$run/wrapper.log" >>"$run/boot.log" 2>/dev/null
        die "the wrapper did not start"
    fi
    short_sleep
done
say "wrapper started as $me, the job runs as $user, pid $(cat "$run/wrapper.pid" 2>/dev/null)"
send_log
await_ready
exit 0
