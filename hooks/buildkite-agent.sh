#!/bin/sh
# The payload of runner kind `buildkite`: starts Buildkite's own agent for one job.
#
# wrapper.sh runs this like any other payload; the exit code is the agent's:
#
#   7     this agent is below the minimum
#   125   the agent could not be prepared, or there is no registration
#   126   there is no agent in this guest
#   27    the job cannot be had: it was cancelled, or another agent has it
#   else  the exit code of the agent, which is not the result of the job: 0 after the job;
#         also 0 without it, if Buildkite does not show the job
#
# The registration is the id of the job, a space, and a token with which an agent can take
# this job and no other. The token is in the environment of the agent alone: neither in a
# file, nor in the arguments of a program, nor in the environment of the job. It is used up
# when the agent has taken the job.

kit=$MAYFLY_HOME
case $0 in
*/*) kit=${kit:-${0%/*}} ;;
esac
mine=$kit/run/job
MAYFLY_RUNNER_DIRECTORY='' MAYFLY_RUNNER_MINIMUM=''
MAYFLY_BUILDKITE_ENDPOINT='' MAYFLY_BUILDKITE_NAME='' MAYFLY_BUILDKITE_TAGS=''
# shellcheck source=/dev/null
. "$kit/buildkite.env"

say() {
    echo "mayfly: $*"
}

# Ends because the agent that was found cannot be used; $1 says why.
refuse() {
    say "$1"
    exit 125
}

# Prints the version of the program $1; fails if it does not report it.
version_of() {
    "$1" --version 2>/dev/null | sed -n 's/^.* version v\{0,1\}\([0-9][0-9]*\(\.[0-9][0-9]*\)*\).*$/\1/p' |
        head -n 1 | grep .
}

# at_least A B: whether version A is B or newer, number by number.
at_least() {
    awk -v a="$1" -v b="$2" 'BEGIN {
        n = split(a, x, "."); m = split(b, y, ".")
        for (i = 1; i <= n || i <= m; i++) {
            if (x[i] + 0 > y[i] + 0) exit 0
            if (x[i] + 0 < y[i] + 0) exit 1
        }
        exit 0
    }'
}

# Whether the program $1 can be used. One that does not report its version is tried.
usable() {
    [ -f "$1" ] && [ -x "$1" ] || return 1
    if ! version=$(version_of "$1"); then
        say "the agent $1 does not report its version"
        return 0
    fi
    if [ -n "$MAYFLY_RUNNER_MINIMUM" ] && ! at_least "$version" "$MAYFLY_RUNNER_MINIMUM"; then
        say "the agent $1 is version $version, but at least $MAYFLY_RUNNER_MINIMUM is required"
        too_old=1
        return 1
    fi
    say "the agent $1 is version $version"
}

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# hook NAME SCRIPT: a hook of the agent that calls one of ours. Agents run it in the shell
# of the job, so it ends with 0 whatever happens, and changes nothing there.
hook() {
    {
        echo '#!/bin/sh'
        echo "/bin/sh $(quoted "$kit/$2.sh") </dev/null || true"
    } >"$work/hooks/$1" && chmod 0755 "$work/hooks/$1"
}

too_old=''
agent=''
if [ -n "$MAYFLY_RUNNER_DIRECTORY" ]; then
    set -- "$MAYFLY_RUNNER_DIRECTORY"
else
    set -- "${HOME:-/nonexistent}/.buildkite-agent/bin" /opt/buildkite-agent/bin /usr/local/bin /usr/bin \
        /opt/homebrew/bin
fi
for directory in "$@"; do
    if [ -z "$agent" ] && usable "$directory/buildkite-agent"; then
        agent=$directory/buildkite-agent
    fi
done
if [ -z "$agent" ]; then
    if [ -n "$too_old" ]; then
        exit 7
    fi
    say "there is no buildkite-agent in this guest ($*)"
    exit 126
fi

work=$mine/buildkite
if ! rm -rf "$work" || ! mkdir -p "$work/hooks" "$work/builds" || ! cd "$work"; then
    refuse "cannot make the directory $work"
fi
if ! hook environment job-started || ! hook pre-exit job-completed; then
    refuse "cannot write to $work"
fi

secret=$(cat "$mine/registration") ||
    refuse "there is no registration in $mine: it can be used only once"
rm -f "$mine/registration"
if [ -e "$mine/registration" ] || [ -e "$kit/registration" ]; then
    refuse "cannot remove the registration, which the job could read"
fi
job=${secret%% *}
token=${secret#* }
case $secret in
*' '*' '* | ' '* | *' ' | '') refuse "the registration is not a job and a token" ;;
*' '*) ;;
*) refuse "the registration is not a job and a token" ;;
esac

# Settings of the template with which the agent would refuse to start, or end with the exit code of the job. They may be in
# its configuration file, too, so they are overridden: with an empty text only where the agent expects no number.
BUILDKITE_AGENT_SPAWN=1
BUILDKITE_AGENT_SPAWN_PER_CPU=0
BUILDKITE_AGENT_SPAWN_WITH_PRIORITY=false
BUILDKITE_AGENT_REFLECT_EXIT_STATUS=false
# The queue is one of the tags.
BUILDKITE_AGENT_QUEUE=
export BUILDKITE_AGENT_SPAWN BUILDKITE_AGENT_SPAWN_PER_CPU BUILDKITE_AGENT_SPAWN_WITH_PRIORITY
export BUILDKITE_AGENT_REFLECT_EXIT_STATUS BUILDKITE_AGENT_QUEUE
unset BUILDKITE_AGENT_ACCESS_TOKEN
BUILDKITE_AGENT_ACQUIRE_JOB=$job
BUILDKITE_AGENT_TOKEN=$token
BUILDKITE_AGENT_ENDPOINT=$MAYFLY_BUILDKITE_ENDPOINT
BUILDKITE_AGENT_NAME=$MAYFLY_BUILDKITE_NAME
BUILDKITE_AGENT_TAGS=$MAYFLY_BUILDKITE_TAGS
# The template's own hooks run as well.
BUILDKITE_ADDITIONAL_HOOKS_PATHS=${BUILDKITE_ADDITIONAL_HOOKS_PATHS:+$BUILDKITE_ADDITIONAL_HOOKS_PATHS,}$work/hooks
BUILDKITE_BUILD_PATH=${BUILDKITE_BUILD_PATH:-$work/builds}
BUILDKITE_AGENT_NO_COLOR=true
export BUILDKITE_AGENT_ACQUIRE_JOB BUILDKITE_AGENT_TOKEN BUILDKITE_AGENT_ENDPOINT BUILDKITE_AGENT_NAME
export BUILDKITE_AGENT_TAGS BUILDKITE_ADDITIONAL_HOOKS_PATHS BUILDKITE_BUILD_PATH BUILDKITE_AGENT_NO_COLOR
secret='' token=''
exec "$agent" start
