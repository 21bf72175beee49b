#!/bin/sh
# The payload of runner kind `github`: starts GitHub's own runner for one job.
#
# wrapper.sh runs this like any other payload; the exit code is the runner's:
#
#   7     this runner is too old (GitHub refused it, or it is below the minimum)
#   125   the runner could not be prepared or registered
#   126   there is no runner in this guest, or it could not be downloaded
#   else  the exit code of run.sh, which is not the result of the job
#
# The registration (a just-in-time configuration or a registration token) is a file or a
# pipe that this script reads and removes before it starts the runner. It is passed to the
# runner in its environment, from which the runner removes it: never as an argument, which
# every process of the guest can read.

kit=$MAYFLY_HOME
case $0 in
*/*) kit=${kit:-${0%/*}} ;;
esac
mine=$kit/run/job
MAYFLY_GITHUB_URL='' MAYFLY_GITHUB_NAME='' MAYFLY_GITHUB_LABELS='' MAYFLY_GITHUB_GROUP=''
MAYFLY_GITHUB_REGISTRATION='' MAYFLY_RUNNER_DIRECTORY='' MAYFLY_RUNNER_MINIMUM=''
MAYFLY_RUNNER_SHA256='' MAYFLY_RUNNER_VERSION=''
# shellcheck source=/dev/null
. "$kit/github.env"

say() {
    echo "mayfly: $*"
}

# Prints the version of the runner in directory $1; fails if the runner does not report it.
version_of() {
    "$1/bin/Runner.Listener" --version 2>/dev/null | tr -d '\r' | grep -E '^[0-9]+(\.[0-9]+)+$' | head -n 1 | grep .
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

# Whether GitHub accepts the runner in directory $1. A runner that does not report its
# version is tried: GitHub decides.
usable() {
    [ -f "$1/run.sh" ] || return 1
    if ! version=$(version_of "$1"); then
        say "the runner in $1 does not report its version"
        return 0
    fi
    if [ -n "$MAYFLY_RUNNER_MINIMUM" ] && ! at_least "$version" "$MAYFLY_RUNNER_MINIMUM"; then
        say "the runner in $1 is version $version, but at least $MAYFLY_RUNNER_MINIMUM is required"
        too_old=1
        return 1
    fi
    say "the runner in $1 is version $version"
}

find_curl() {
    for candidate in /usr/bin/curl /opt/homebrew/bin/curl /usr/local/bin/curl; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

sha256_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d ' ' -f 1
    else
        shasum -a 256 <"$1" | cut -d ' ' -f 1
    fi
}

# Downloads the runner from this host over the guest API into directory $1.
fetch() {
    curl=$(find_curl) || return 1
    archive=$mine/runner.tar.gz
    say "downloading runner $MAYFLY_RUNNER_VERSION from this host"
    if ! "$curl" -q -K "$kit/curlrc" --silent --show-error --fail --noproxy '*' --connect-timeout 5 \
        --retry 5 --retry-delay 1 --retry-connrefused --output "$archive" \
        "$MAYFLY_URL/vms/$MAYFLY_VM_ID/runner"; then
        say "cannot download the runner"
        return 1
    fi
    if [ "$(sha256_of "$archive")" != "$MAYFLY_RUNNER_SHA256" ]; then
        say "the downloaded runner does not have the checksum $MAYFLY_RUNNER_SHA256"
        return 1
    fi
    mkdir -p "$1" && tar -xzf "$archive" -C "$1" || return 1
    rm -f "$archive"
}

too_old=''
runner=''
if [ -n "$MAYFLY_RUNNER_DIRECTORY" ]; then
    set -- "$MAYFLY_RUNNER_DIRECTORY"
else
    set -- "${HOME:-/nonexistent}/actions-runner" /opt/actions-runner /actions-runner /usr/local/actions-runner
fi
for candidate in "$@"; do
    if usable "$candidate"; then
        runner=$candidate
        break
    fi
done
if [ -z "$runner" ] && [ -n "$MAYFLY_RUNNER_SHA256" ]; then
    if fetch "$mine/actions-runner" && usable "$mine/actions-runner"; then
        runner=$mine/actions-runner
    fi
fi
if [ -z "$runner" ]; then
    if [ -n "$too_old" ]; then
        exit 7
    fi
    say "there is no runner in this guest ($*), and none could be downloaded"
    exit 126
fi

# Ends because the runner that was found cannot be used; $1 says why.
refuse() {
    say "$1"
    exit 125
}

cd "$runner" || refuse "cannot enter $runner"

# Left by a runner that was registered while the template was made. config.sh refuses to
# register another one beside it, and its credentials would be readable by the job.
rm -rf .runner .runner_migrated .credentials .credentials_migrated .credentials_rsaparams .service ||
    refuse "cannot remove the registration of another runner from $runner"

# The runner reads .env at every start, and .env takes precedence over its environment: an
# old line in the template would refer to hooks that do not exist any more, or to another
# proxy than the one that this vm was given. Proxies are not written into it, because their
# URLs may hold a password.
# One KEY=VALUE per line, nothing quoted.
old='ACTIONS_RUNNER_HOOK_JOB_STARTED|ACTIONS_RUNNER_HOOK_JOB_COMPLETED|MAYFLY_[A-Z_]*'
if [ -n "${https_proxy+set}${HTTPS_PROXY+set}${http_proxy+set}${HTTP_PROXY+set}" ]; then
    old="$old|https_proxy|HTTPS_PROXY|http_proxy|HTTP_PROXY|no_proxy|NO_PROXY"
fi
for name in NODE_EXTRA_CA_CERTS SSL_CERT_FILE GIT_SSL_CAINFO CURL_CA_BUNDLE REQUESTS_CA_BUNDLE; do
    if eval "[ -n \"\${$name+set}\" ]"; then
        old="$old|$name"
    fi
done
{
    if [ -f .env ]; then
        grep -v -E "^($old)=" .env
    fi
    echo "ACTIONS_RUNNER_HOOK_JOB_STARTED=$kit/job-started.sh"
    echo "ACTIONS_RUNNER_HOOK_JOB_COMPLETED=$kit/job-completed.sh"
    echo "MAYFLY_VM_ID=$MAYFLY_VM_ID"
    echo "MAYFLY_URL=$MAYFLY_URL"
    echo "MAYFLY_HOME=$kit"
} >"$mine/runner.dotenv"
if ! cat "$mine/runner.dotenv" >.env; then
    refuse "cannot write $runner/.env: the runner's user needs write access to its directory"
fi
ACTIONS_RUNNER_HOOK_JOB_STARTED=$kit/job-started.sh
ACTIONS_RUNNER_HOOK_JOB_COMPLETED=$kit/job-completed.sh
# Otherwise a runner that is too old exits with 0.
ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1
export ACTIONS_RUNNER_HOOK_JOB_STARTED ACTIONS_RUNNER_HOOK_JOB_COMPLETED
export ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE

secret=$(cat "$mine/registration") ||
    refuse "there is no registration in $mine: it can be used only once"
rm -f "$mine/registration"
if [ -e "$mine/registration" ] || [ -e "$kit/registration" ]; then
    refuse "cannot remove the registration, which the job could read"
fi
case $MAYFLY_GITHUB_REGISTRATION in
jit_config)
    ACTIONS_RUNNER_INPUT_JITCONFIG=$secret exec ./run.sh
    ;;
token)
    (
        ACTIONS_RUNNER_INPUT_URL=$MAYFLY_GITHUB_URL
        ACTIONS_RUNNER_INPUT_TOKEN=$secret
        ACTIONS_RUNNER_INPUT_NAME=$MAYFLY_GITHUB_NAME
        ACTIONS_RUNNER_INPUT_LABELS=$MAYFLY_GITHUB_LABELS
        ACTIONS_RUNNER_INPUT_UNATTENDED=1
        ACTIONS_RUNNER_INPUT_EPHEMERAL=1
        ACTIONS_RUNNER_INPUT_REPLACE=1
        export ACTIONS_RUNNER_INPUT_URL ACTIONS_RUNNER_INPUT_TOKEN ACTIONS_RUNNER_INPUT_NAME
        export ACTIONS_RUNNER_INPUT_LABELS ACTIONS_RUNNER_INPUT_UNATTENDED
        export ACTIONS_RUNNER_INPUT_EPHEMERAL ACTIONS_RUNNER_INPUT_REPLACE
        if [ -n "$MAYFLY_GITHUB_GROUP" ]; then
            ACTIONS_RUNNER_INPUT_RUNNERGROUP=$MAYFLY_GITHUB_GROUP
            export ACTIONS_RUNNER_INPUT_RUNNERGROUP
        fi
        exec ./config.sh
    ) || refuse "cannot register the runner"
    exec ./run.sh
    ;;
*)
    refuse "unknown kind of registration: '$MAYFLY_GITHUB_REGISTRATION'"
    ;;
esac
