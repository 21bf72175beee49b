#!/bin/sh
# The payload of runner kind `gitea`: starts Gitea's own runner for one job.
#
# wrapper.sh runs this like any other payload; the exit code is the runner's:
#
#   7     this runner is too old: it would not end after one job, or is below the minimum
#   125   the runner could not be prepared, or there is no registration
#   126   there is no runner in this guest
#   else  the exit code of the runner, which is not the result of the job: 0 after a job,
#         1 if Gitea does not know this runner (any more)
#
# The registration is the content of the runner's file .runner, good for this runner and
# one job. The runner reads that file once, when it starts. So .runner is a pipe here: the
# registration is never in a file that the job could read. It stays in the memory of the
# runner, which the job's user may be able to read; Gitea forgets it when the job ends.

kit=$MAYFLY_HOME
case $0 in
*/*) kit=${kit:-${0%/*}} ;;
esac
mine=$kit/run/job
log=$kit/run/job.log # where the wrapper sends the output of this script
# The first version that ends after one job.
ephemeral=0.2.12
MAYFLY_RUNNER_DIRECTORY='' MAYFLY_RUNNER_MINIMUM=''
# shellcheck source=/dev/null
. "$kit/gitea.env"

say() {
    echo "mayfly: $*"
}

# Ends because the runner that was found cannot be used; $1 says why.
refuse() {
    say "$1"
    exit 125
}

# Prints the version of the program $1; fails if it does not report it. It may be a
# development build.
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
        say "the runner $1 does not report its version"
        return 0
    fi
    for minimum in "$ephemeral" $MAYFLY_RUNNER_MINIMUM; do
        if ! at_least "$version" "$minimum"; then
            say "the runner $1 is version $version, but at least $minimum is required"
            too_old=1
            return 1
        fi
    done
    say "the runner $1 is version $version"
}

# Between single quotes, the only special character of YAML is the single quote.
yaml() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"
}

quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

# Whether jobs of this guest may run in containers. The runner starts its hooks where the
# steps run, and fails a job whose container has not got the hook.
has_containers() {
    [ -z "${DOCKER_HOST:-}" ] || return 0
    for program in docker dockerd podman; do
        command -v "$program" >/dev/null 2>&1 && return 0
    done
    for socket in /var/run/docker.sock /run/podman/podman.sock "${XDG_RUNTIME_DIR:-/run}/docker.sock" \
        "${HOME:-/nonexistent}/.docker/run/docker.sock" "${HOME:-/nonexistent}/.colima/docker.sock"; do
        [ ! -S "$socket" ] || return 0
    done
    return 1
}

# hook NAME: a program that calls one of our hooks. It has no extension: the runner would
# start a .sh with bash, which is not in every guest.
hook() {
    {
        echo '#!/bin/sh'
        # Present only if the runner has written its labels in another form.
        echo "rm -f $(quoted "$work/.runner")"
        echo "exec /bin/sh $(quoted "$kit/$1.sh")"
    } >"$work/$1" && chmod 0700 "$work/$1"
}

# No cache server: it would be one for this job alone. No time limit of the runner's own:
# Gitea has one, and so has this vm. A runner that gets a signal, as at a shutdown of the
# guest, waits for its job: if it cancelled the job, it would report a success (3.1).
settings() {
    echo 'log:'
    echo '  level: info'
    echo 'runner:'
    echo "  file: $(yaml "$work/.runner")"
    echo '  capacity: 1'
    echo '  timeout: 720h'
    echo '  shutdown_timeout: 720h'
    if [ -n "$hooks" ]; then
        echo '  hooks:'
        echo "    job_started: $(yaml "$work/job-started")"
        echo "    job_completed: $(yaml "$work/job-completed")"
    fi
    echo 'cache:'
    echo '  enabled: false'
}

# The runner logs each job that it takes, in every version.
has_taken_a_job() {
    grep -q 'level=info msg="task [0-9][0-9]* repo is ' "$log" 2>/dev/null
}

# From here on the runner itself repeats what fails. Before, it ends at the first failure,
# while Gitea is restarted, for example.
has_registered() {
    grep -q 'declare successfully' "$log" 2>/dev/null
}

# Servers up to 1.26 put the word into the text of an unknown error.
was_refused() {
    grep -qi 'fail to invoke Declare.*unauthenticated' "$log" 2>/dev/null
}

# Reports the start of the job, for a runner that does not call hooks.
report_start() {
    until has_taken_a_job; do
        sleep 1
    done
    "$work/job-started"
}

too_old=''
runner=''
if [ -n "$MAYFLY_RUNNER_DIRECTORY" ]; then
    set -- "$MAYFLY_RUNNER_DIRECTORY"
else
    set -- "${HOME:-/nonexistent}/gitea-runner" /opt/gitea-runner /usr/local/bin /usr/bin /opt/homebrew/bin
fi
for directory in "$@"; do
    for program in "$directory/gitea-runner" "$directory/act_runner"; do
        if [ -z "$runner" ] && usable "$program"; then
            runner=$program
        fi
    done
done
if [ -z "$runner" ]; then
    if [ -n "$too_old" ]; then
        exit 7
    fi
    say "there is no gitea-runner and no act_runner in this guest ($*)"
    exit 126
fi

work=$mine/gitea
mask=$(umask)
umask 077
if ! rm -rf "$work" || ! mkdir "$work" || ! cd "$work"; then
    refuse "cannot make the directory $work"
fi
hooks=''
if has_containers; then
    say "there are containers in this guest: Mayfly's hooks are called when the runner logs a job and when it ends"
elif "$runner" generate-config 2>/dev/null | grep -q 'job_started:'; then
    hooks=1
else
    say "this runner has no hooks: Mayfly's are called when it logs a job and when it ends"
fi
if ! hook job-started || ! hook job-completed || ! settings >config.yaml; then
    refuse "cannot write to $work"
fi

secret=$(cat "$mine/registration") ||
    refuse "there is no registration in $mine: it can be used only once"
rm -f "$mine/registration"
if [ -e "$mine/registration" ] || [ -e "$kit/registration" ]; then
    refuse "cannot remove the registration, which the job could read"
fi
case $secret in
'{'*'"token"'*'}') ;;
*) refuse "the registration is not the content of a file .runner" ;;
esac
umask "$mask"
reporter=''
if [ -z "$hooks" ]; then
    report_start &
    reporter=$!
fi
# It would replace the labels.
unset GITEA_RUNNER_LABELS
tries=0
while :; do
    mkfifo -m 600 .runner || refuse "cannot write to $work"
    # Waits until the runner opens the pipe.
    (printf '%s\n' "$secret" >.runner && rm -f .runner) &
    writer=$!
    "$runner" --config "$work/config.yaml" daemon
    code=$?
    if [ -p .runner ]; then
        kill "$writer" 2>/dev/null
        rm -f .runner
    fi
    tries=$((tries + 1))
    if [ "$code" = 0 ] || has_registered || was_refused || [ "$tries" = 24 ]; then
        break
    fi
    say "the runner did not reach Gitea; it is started again"
    sleep 5
done
if [ -z "$hooks" ]; then
    if has_taken_a_job; then
        wait "$reporter"
        "$work/job-completed"
    else
        kill "$reporter" 2>/dev/null
    fi
fi
exit "$code"
