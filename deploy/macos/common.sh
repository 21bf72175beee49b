#!/bin/sh
# Functions of install.sh and uninstall.sh, which source this file.
#
# For the /bin/sh of macOS, with options that its tools support.
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

# Runs a command that changes something; with --dry-run, only prints it.
run() {
    if [ "$dry_run" = yes ]; then
        printf 'would run: %s\n' "$*"
    else
        "$@"
    fi
}

# Makes the path of an option absolute; it need not exist.
absolute() {
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

# Reads one value of the installed agent, so that options of the installation need not be repeated.
installed() { # key path
    [ -f "$plist" ] && plutil -extract "$1" raw -o - "$plist" 2>/dev/null
}

# Paths: as given, else as installed, else the defaults.
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

# Prints the service's process id, or nothing while launchd has none.
pid() { launchctl print "$domain/$label" 2>/dev/null | sed -n 's/^[[:space:]]*pid = \([0-9][0-9]*\)$/\1/p' | head -n 1; }

is_healthy() { curl --fail --silent --output /dev/null --max-time 2 "$url/healthz"; }

# Removes an agent from launchd, and waits until it is gone: launchctl does not wait, and refuses to load the agent
# meanwhile.
boot_out() { # label
    is_loaded "$1" || return 0
    # Its exit code may also mean "in progress"; only the absence of the agent counts.
    run launchctl bootout "$domain/$1" || :
    [ "$dry_run" = no ] || return 0
    tries=0
    while is_loaded "$1"; do
        tries=$((tries + 1))
        [ "$tries" -le 60 ] || fail "launchd does not remove $1; see: launchctl print $domain/$1"
        sleep 1
    done
}
