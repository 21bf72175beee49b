#!/bin/sh
# The job's side of wrapper.sh: runs as the job's user, which may differ from the
# wrapper's.
#
#   job.sh prepare   checks the payload, and reads the environment of a login of this user;
#                    fails, with the reason on its last line, if the payload cannot start
#   job.sh run       becomes the payload
#   job.sh session   the same for launchd, and reports the payload's end through a pipe
#
# Nothing of the user's profile or login shell is used until `prepare`, whose failure
# costs the job only the profile's variables.
#
# What the payload gets is documented in docs/guest.md.

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
# The runner kills every process that carries this variable when a job ends.
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 126
mine=$kit/run/job # the only directory of the bundle that belongs to this user
system=$(uname -s)

MAYFLY_URL='' MAYFLY_VM_ID='' MAYFLY_PATH=''
# shellcheck source=/dev/null
. "$kit/mayfly.env" || exit 126
# shellcheck source=/dev/null
. "$kit/job.env" || exit 126

user=$(id -un) || exit 126
# A service of the system may have started this without a HOME.
if [ -z "${HOME:-}" ]; then
    eval "HOME=~$user"
fi
# Not the caller's: `su` sets the shell that it was told to start.
if [ "$system" != Darwin ]; then
    SHELL=$(awk -F : -v user="$user" '$1 == user { print $7; exit }' /etc/passwd 2>/dev/null)
fi
SHELL=${SHELL:-/bin/sh} USER=$user LOGNAME=$user
export HOME SHELL USER LOGNAME

# The environment of a login shell. Over SSH, under cloud-init and under launchd nothing
# has read the profile, in which Homebrew and the tools of typical images extend the PATH.
# The shell's output is discarded, and it has a time limit, because it may wait for input.
read_login_environment() {
    rm -f "$mine/login.env"
    login_shell=$SHELL
    case ${login_shell##*/} in
    zsh | bash | sh | dash | ksh | ash) ;;
    *)
        login_shell=/bin/sh
        if [ "$system" = Darwin ]; then
            login_shell=/bin/zsh
        fi
        ;;
    esac
    # shellcheck disable=SC2016  # the shells that are started expand it
    set -- "$login_shell" -l -c 'exec /bin/sh -c "$1" sh "$2"' mayfly 'export -p >"$1"' "$mine/login.env"
    if command -v perl >/dev/null 2>&1; then
        # shellcheck disable=SC2016  # perl expands it
        set -- perl -e 'alarm shift; exec { $ARGV[0] } @ARGV; exit 127' -- 20 "$@"
    elif command -v timeout >/dev/null 2>&1; then
        set -- timeout -s KILL 20 "$@"
    else
        return 0
    fi
    MAYFLY_VM_ID=$MAYFLY_VM_ID "$@" </dev/null >/dev/null 2>&1
    # Read in a subshell first: a broken file would end this shell without a message.
    # shellcheck source=/dev/null
    if [ ! -s "$mine/login.env" ] || ! (. "$mine/login.env") >/dev/null 2>&1; then
        echo "mayfly: the login shell $login_shell did not return its environment in time: the job runs without it"
        rm -f "$mine/login.env"
    fi
}

# job_path PATH MORE: PATH, extended by the entries that are missing in it.
job_path() (
    all=$1
    set -f
    IFS=:
    for entry in /opt/homebrew/bin /opt/homebrew/sbin /usr/local/sbin /usr/local/bin $2 /usr/sbin /usr/bin /sbin /bin; do
        case :$all: in
        *":$entry:"*) ;;
        *)
            if [ -d "$entry" ]; then
                all=$all:$entry
            fi
            ;;
        esac
    done
    printf '%s\n' "${all#:}"
)

login_path() (
    given=$MAYFLY_PATH
    PATH=$given
    if [ -s "$mine/login.env" ]; then
        # It may set any variable.
        set -- "$given"
        # shellcheck source=/dev/null
        . "$mine/login.env"
        given=$1
    elif [ -x /usr/libexec/path_helper ]; then
        eval "$(/usr/libexec/path_helper -s)"
    fi
    job_path "$PATH" "$given"
)

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Every zsh reads ~/.zshenv, so processes that these scripts do not start (ssh, launchd)
# get the job's variables from there. Descendants of the job have them already, perhaps
# changed by the job, and must keep them. The job's own values stay in runner.env.
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

# Replaces Mayfly's block and changes nothing else, not even the file's mode. A block
# without its last line is not Mayfly's any more.
write_zshenv() {
    zshenv=$HOME/.zshenv
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
    } >"$mine/zshenv" || return 1
    cmp -s "$mine/zshenv" "$zshenv" || cat "$mine/zshenv" >"$zshenv" || return 1
    rm -f "$mine/zshenv"
}

# What would otherwise be "not found", or be found by the job much later.
check_payload() {
    [ -f "$kit/payload" ] || return 0
    if [ "$(head -c 3 "$kit/payload" | od -An -tx1 | tr -d ' \n')" = efbbbf ]; then
        echo "the script begins with a byte order mark: save it as UTF-8 without one"
        return 1
    fi
    if [ "$(head -c 2 "$kit/payload" | tr -d '\0')" != '#!' ]; then
        return 0
    fi
    first=$(head -n 1 "$kit/payload" | head -c 1000 | tr -d '\0')
    case $first in
    *"$(printf '\r')")
        echo "the first line of the script ends with a carriage return: save it with line feeds only"
        return 1
        ;;
    esac
    set -f
    # shellcheck disable=SC2086  # the words of the line
    set -- ${first#??}
    set +f
    if [ ! -x "${1:-}" ] || [ -d "${1:-}" ]; then
        echo "the script's interpreter ${1:-} is not in this guest"
        return 1
    fi
    if [ "${1##*/}" = env ] && [ "$#" = 2 ] && ! (PATH=$(login_path) && command -v "$2") >/dev/null 2>&1; then
        echo "the script's interpreter $2 is not in the PATH of this guest: $(login_path)"
        return 1
    fi
}

# Becomes the payload.
become_payload() {
    if [ ! -f "$kit/payload" ]; then
        echo "mayfly: no payload in $kit"
        exit 127
    fi
    # From here on in arguments, because the files that are read below may set any variable.
    set -- "$kit/payload"
    if [ "$(head -c 2 "$kit/payload" | tr -d '\0')" != '#!' ]; then
        set -- /bin/sh "$@"
    fi
    set -- "$kit" "$MAYFLY_VM_ID" "$MAYFLY_URL" "$HOME" "$(login_path)" "$@"
    if [ -s "$mine/login.env" ]; then
        # shellcheck source=/dev/null
        . "$mine/login.env"
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
    HOME=$4
    PATH=$5
    shift 5
    cd "$HOME" 2>/dev/null || cd / || :
    if [ -r "$MAYFLY_HOME/runner.env" ]; then
        # shellcheck source=/dev/null
        . "$MAYFLY_HOME/runner.env"
    fi
    exec "$@"
}

case ${1:-} in
prepare)
    read_login_environment
    if [ "$system" = Darwin ]; then
        write_zshenv || echo "mayfly: cannot write .zshenv"
    fi
    check_payload || exit 1
    ;;
run) become_payload ;;
session)
    # Opened first: from then on the end of this process is noticed, however it ends.
    exec 9>"$mine/payload.end" || exit 1
    (set -C && echo "$$" >"$mine/payload.pid") 2>/dev/null || exit 0
    read_login_environment 9>&-
    # A session of its own, like that of a job in the background: a job that signals its
    # process group must not end this script.
    # shellcheck disable=SC2016  # perl expands it
    perl -e 'use POSIX (); POSIX::setsid(); exec { $ARGV[0] } @ARGV; exit 127' -- /bin/sh "$0" run \
        </dev/null >>"$kit/run/job.log" 2>&1 9>&-
    echo "$?" >&9
    ;;
*) exit 64 ;;
esac
exit 0
