#!/bin/sh
# Runs GitHub's runner for one job in a guest, and tells GARM how far it is.
#
# GARM gives the runner's registration to whoever has the instance's token, as long as the
# instance is being created. The order of the reports is GARM's: `installing` first, system
# information before `idle`. A 401 before the runner is started means that GARM has given
# this instance up: the script ends, and the vm with it. Once the runner is started, a 401
# means nothing, because a job may have begun before `idle` is reported.
#
# The script stays until the runner has ended, because the vm ends with the script.
#
#   77    GARM has given this instance up
#   125   the runner could not be prepared or registered
#   126   there is no runner in this guest, and none could be downloaded
#   else  the exit code of run.sh, which is not the result of the job

# Tokens must not reach the log.
set +x
umask 077

callback=${GARM_CALLBACK_URL:-}
metadata=${GARM_METADATA_URL:-}
token=${GARM_INSTANCE_TOKEN:-}
name=${GARM_RUNNER_NAME:-}
url=${GARM_RUNNER_URL:-}
group=${GARM_RUNNER_GROUP:-}
labels=${GARM_RUNNER_LABELS:-}
jit=${GARM_JIT:-}
tools=${GARM_TOOLS:-}
ca_bundle=${GARM_CA_BUNDLE:-}
# The job inherits the environment, and it can read the file that it came from.
unset GARM_CALLBACK_URL GARM_METADATA_URL GARM_INSTANCE_TOKEN GARM_RUNNER_NAME GARM_RUNNER_URL
unset GARM_RUNNER_GROUP GARM_RUNNER_LABELS GARM_JIT GARM_TOOLS GARM_CA_BUNDLE
if [ -w "${MAYFLY_HOME:-/nonexistent}/runner.env" ]; then
    : >"$MAYFLY_HOME/runner.env"
fi

say() {
    echo "mayfly: $*"
}

work=$(mktemp -d) || exit 125
trap 'rm -rf "$work"' EXIT
# A file, because every process of the guest can read arguments.
printf 'header = "Authorization: Bearer %s"\n' "$token" >"$work/garm.curlrc" || exit 125
token=''
# GARM calls the address of the reports with and without `/status`.
callback=${callback%/}
callback=${callback%/status}
metadata=${metadata%/}

curl=''
for candidate in /usr/bin/curl /opt/homebrew/bin/curl /usr/local/bin/curl; do
    if [ -x "$candidate" ]; then
        curl=$candidate
        break
    fi
done
if [ -z "$curl" ]; then
    say "there is no curl in this guest"
    exit 125
fi

# Certificates of GARM and of GitHub Enterprise Server, in addition to those of the system.
if [ -n "$ca_bundle" ]; then
    if printf '%s' "$ca_bundle" | openssl base64 -d -A >"$work/added.pem" 2>/dev/null ||
        printf '%s' "$ca_bundle" | base64 -d >"$work/added.pem" 2>/dev/null; then
        certificates=${HOME:-/tmp}/.garm-certificates.pem
        : >"$certificates"
        for system in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
            if [ -r "$system" ]; then
                cat "$system" >>"$certificates"
                break
            fi
        done
        cat "$work/added.pem" >>"$certificates"
        chmod 644 "$certificates"
        CURL_CA_BUNDLE=$certificates SSL_CERT_FILE=$certificates GIT_SSL_CAINFO=$certificates
        REQUESTS_CA_BUNDLE=$certificates NODE_EXTRA_CA_CERTS=$certificates
        export CURL_CA_BUNDLE SSL_CERT_FILE GIT_SSL_CAINFO REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS
        # The runner of macOS asks the keychain.
        if [ "$(uname -s)" = Darwin ] && sudo -n true 2>/dev/null; then
            sudo -n security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain \
                "$work/added.pem" || say "cannot add GARM's certificates to the keychain"
        fi
    else
        say "cannot read the certificates that GARM sent"
    fi
fi

# ask SECONDS ARGUMENTS...: sends a request to GARM, and repeats it until it is answered;
# sets `status`. The answer is in $work/answer. -q has to be first.
ask() {
    seconds=$1
    shift
    end=$(($(date +%s) + seconds))
    while :; do
        status=$("$curl" -q -K "$work/garm.curlrc" --silent --connect-timeout 10 --max-time 60 \
            --output "$work/answer" --write-out '%{http_code}' "$@") || status=000
        case $status in
        000 | 408 | 425 | 429 | 5??) ;;
        *) return 0 ;;
        esac
        if [ "$(date +%s)" -ge "$end" ]; then
            return 0
        fi
        sleep 2
    done
}

# report SECONDS STATUS MESSAGE AGENT: the message holds neither quotes nor backslashes.
report() {
    printf '{"status":"%s","message":"%s","agent_id":%s}' "$2" "$3" "$4" >"$work/report"
    ask "$1" --request POST --header 'Content-Type: application/json' --data-binary "@$work/report" "$callback/status"
}

# Ends because GARM has given this instance up: it was deleted, is created again with another
# token, or its time is over.
given_up() {
    say "GARM does not accept the token of this instance any more ($1): the vm ends"
    exit 77
}

# fail CODE MESSAGE
fail() {
    say "$2"
    report 30 failed "$2" null
    exit "$1"
}

# get PATH FILE: fetches what GARM has for this instance.
get() {
    ask 120 "$metadata/$1"
    case $status in
    200) cat "$work/answer" >"$2" || fail 125 "cannot write $2" ;;
    401) given_up "$1" ;;
    *) fail 125 "GARM answered $status to $1" ;;
    esac
    rm -f "$work/answer"
}

report 600 installing "preparing the runner" null
case $status in
2??) ;;
401) given_up status ;;
000) fail 125 "GARM cannot be reached from this guest" ;;
*) say "GARM answered $status to the report that the runner is being installed" ;;
esac

sha256_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d ' ' -f 1
    else
        shasum -a 256 <"$1" | cut -d ' ' -f 1
    fi
}

# The name that GitHub gives this system and architecture, as `system architecture`.
platform() {
    case $(uname -s) in
    Linux) system=linux ;;
    Darwin) system=osx ;;
    *) return 1 ;;
    esac
    case $(uname -m) in
    x86_64 | amd64) echo "$system x64" ;;
    aarch64 | arm64) echo "$system arm64" ;;
    arm*) echo "$system arm" ;;
    *) return 1 ;;
    esac
}

# Downloads the runner into directory $1.
download() {
    wanted=$(platform) || return 1
    printf '%s' "$tools" >"$work/tools"
    while read -r system architecture sha256 secret address; do
        if [ "$system $architecture" != "$wanted" ]; then
            continue
        fi
        say "downloading the runner for $wanted"
        printf 'url = "%s"\n' "$address" >"$work/download.curlrc"
        if [ "$secret" != - ]; then
            printf 'header = "Authorization: Bearer %s"\n' "$secret" >>"$work/download.curlrc"
        fi
        if ! "$curl" -q -K "$work/download.curlrc" --silent --show-error --fail --location --connect-timeout 10 \
            --retry 5 --retry-delay 2 --retry-connrefused --output "$work/runner.tar.gz" </dev/null; then
            return 1
        fi
        if [ "$sha256" != - ] && [ "$(sha256_of "$work/runner.tar.gz")" != "$sha256" ]; then
            say "the downloaded runner does not have the checksum $sha256"
            return 1
        fi
        # The job's user owns it, and its tools expect usual modes.
        (umask 022 && mkdir -p "$1" && tar -xzf "$work/runner.tar.gz" -C "$1") || return 1
        rm -f "$work/runner.tar.gz"
        return 0
    done <"$work/tools"
    say "GARM names no runner for $wanted"
    return 1
}

home=${HOME:-/nonexistent}
runner=''
for candidate in "$home/actions-runner" /opt/actions-runner /actions-runner /usr/local/actions-runner; do
    if [ -f "$candidate/run.sh" ]; then
        runner=$candidate
        break
    fi
done
if [ -z "$runner" ]; then
    if ! download "$home/actions-runner" || [ ! -f "$home/actions-runner/run.sh" ]; then
        fail 126 "there is no runner in this guest, and none could be downloaded"
    fi
    runner=$home/actions-runner
fi
cd "$runner" || fail 125 "cannot enter $runner"
# Left by a runner that was registered while the template was made.
rm -rf .runner .runner_migrated .credentials .credentials_migrated .credentials_rsaparams .service ||
    fail 125 "cannot remove the registration of another runner"

# The runner reads .env at every start, and .env takes precedence over its environment: an
# old line in the template would name hooks and proxies that do not exist any more.
if [ -f .env ]; then
    old='ACTIONS_RUNNER_HOOK_JOB_STARTED|ACTIONS_RUNNER_HOOK_JOB_COMPLETED|MAYFLY_[A-Z_]*'
    old="$old|https_proxy|HTTPS_PROXY|http_proxy|HTTP_PROXY|no_proxy|NO_PROXY"
    grep -v -E "^($old)=" .env >"$work/env"
    cat "$work/env" >.env || fail 125 "cannot write the .env of the runner"
fi
# Otherwise a runner that is too old exits with 0.
ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE=1
export ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE

agent=null
if [ -n "$jit" ]; then
    get credentials/runner .runner
    get credentials/credentials .credentials
    get credentials/credentials_rsaparams .credentials_rsaparams
else
    get runner-registration-token/ "$work/registration"
    registration=$(cat "$work/registration")
    rm -f "$work/registration"
    set -- --unattended --url "$url" --name "$name" --labels "$labels" --no-default-labels --ephemeral
    if [ -n "$group" ]; then
        set -- "$@" --runnergroup "$group"
    fi
    tries=5
    # The runner takes the token from its environment, where other users cannot read it.
    until ACTIONS_RUNNER_INPUT_TOKEN=$registration ./config.sh "$@" </dev/null; do
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            fail 125 "the runner could not be registered"
        fi
        rm -f .runner .credentials .credentials_rsaparams
        sleep 5
    done
    registration=''
    found=$(tr -d '\r\n' <.runner | grep -o '"agentId"[^0-9]*[0-9][0-9]*' | grep -o '[0-9]*$')
    agent=${found:-null}
fi

# A word of the system's description, without what JSON would not allow.
plain() {
    printf '%s' "$1" | tr -cd 'A-Za-z0-9 ._/()-'
}

if [ "$(uname -s)" = Darwin ]; then
    os_name=$(sw_vers -productName)
    os_version=$(sw_vers -productVersion)
else
    # shellcheck source=/dev/null
    os_name=$( (. /etc/os-release && echo "${NAME:-}") 2>/dev/null)
    # shellcheck source=/dev/null
    os_version=$( (. /etc/os-release && echo "${VERSION_ID:-}") 2>/dev/null)
fi
printf '{"os_name":"%s","os_version":"%s","agent_id":%s}' "$(plain "$os_name")" "$(plain "$os_version")" "$agent" \
    >"$work/system"
ask 60 --request POST --header 'Content-Type: application/json' --data-binary "@$work/system" "$callback/system-info/"
if [ "$status" = 401 ]; then
    given_up system-info
fi

umask 022
./run.sh </dev/null &
running=$!
trap 'kill -TERM "$running" 2>/dev/null' TERM INT HUP
report 120 idle "the runner is started" "$agent"
case $status in
2??) ;;
401) say "GARM already counts the runner as working" ;;
*) say "GARM answered $status to the report that the runner is idle" ;;
esac
rm -rf "$work"
# A signal ends `wait` before the runner has ended.
while :; do
    wait "$running"
    code=$?
    if ! kill -0 "$running" 2>/dev/null; then
        break
    fi
done
say "the runner has ended with exit code $code"
exit "$code"
