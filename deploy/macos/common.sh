#!/bin/sh
# What install.sh and uninstall.sh share. Read by them, not run.
#
# For the /bin/sh of macOS, and with no option that its tools lack.
# shellcheck disable=SC2034,SC2154 # some of this is used, and some of what is used is set, in those two

label=dev.mayfly.agent
logs_label=dev.mayfly.logs
agents=$HOME/Library/LaunchAgents
plist=$agents/$label.plist
logs_plist=$agents/$logs_label.plist
log_dir=$HOME/Library/Logs/mayfly
domain=gui/$(id -u)
dry_run=no

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Runs a command that changes something, or says that it would.
run() {
    if [ "$dry_run" = yes ]; then
        printf 'would run: %s\n' "$*"
    else
        "$@"
    fi
}

# An absolute path of an option's value, which need not exist.
absolute() {
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

# One value of the installed agent: how it was installed is not asked for again.
installed() { # key path
    [ -f "$plist" ] && plutil -extract "$1" raw -o - "$plist" 2>/dev/null
}

# Where things are: as asked for, else as installed, else as usual.
locate() {
    if [ -z "$prefix" ]; then
        prefix=$(installed ProgramArguments.0) || prefix=''
        case $prefix in
        */bin/mayfly) prefix=${prefix%/bin/mayfly} ;;
        *) prefix=$HOME/.local ;;
        esac
    fi
    if [ -z "$data_dir" ]; then
        data_dir=$(installed EnvironmentVariables.MAYFLY_DATA_DIR) || data_dir=$HOME/.mayfly
    fi
    target=$prefix/bin/mayfly
    rotate=$prefix/libexec/mayfly/rotate-logs.sh
}

is_loaded() { launchctl print "$domain/$1" >/dev/null 2>&1; }

# The service's process, or nothing while launchd has none.
pid() { launchctl print "$domain/$label" 2>/dev/null | sed -n 's/^[[:space:]]*pid = \([0-9][0-9]*\)$/\1/p' | head -n 1; }

is_healthy() { curl --fail --silent --output /dev/null --max-time 2 "$url/healthz"; }

# Takes an agent out of launchd, and comes back when it is out: launchctl does not wait, and refuses to load it meanwhile.
boot_out() { # label
    is_loaded "$1" || return 0
    # Its exit code says "in progress" as well; what counts is whether the agent is gone.
    run launchctl bootout "$domain/$1" || :
    [ "$dry_run" = no ] || return 0
    tries=0
    while is_loaded "$1"; do
        tries=$((tries + 1))
        [ "$tries" -le 60 ] || fail "launchd does not let go of $1; see: launchctl print $domain/$1"
        sleep 1
    done
}
