#!/bin/sh
# Removes what install.sh installed. Vms, templates and records stay unless their removal is requested.
set -eu

usage() {
    cat <<'END'
Usage: uninstall.sh [-n] [--force] [--purge] [--prefix DIR] [--data-dir DIR] [--url URL]

  -n, --dry-run     print what would be done, and change nothing
  --force           end Mayfly's vms first; without this option, live vms prevent the uninstallation
  --purge           remove the data directory (templates, records, keys) and the logs, too
  --prefix DIR      where it was installed [as installed, else ~/.local]
  --data-dir DIR    data directory [as installed, else ~/.mayfly]
  --url URL         address of the service, if not http://127.0.0.1:8470
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/macos/common.sh
. "$here/common.sh"

force=no purge=no prefix='' data_dir='' url=http://127.0.0.1:8470
while [ $# -gt 0 ]; do
    case $1 in
    -n | --dry-run) dry_run=yes ;;
    --force) force=yes ;;
    --purge) purge=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    --prefix | --data-dir | --url)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --prefix) prefix=$(absolute "$2") ;;
        --data-dir) data_dir=$(absolute "$2") ;;
        --url) url=${2%/} ;;
        esac
        shift
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done

[ "$(uname -s)" = Darwin ] || fail "this is not macOS"
[ "$(id -u)" != 0 ] || fail "run this as the user who installed it, without sudo"

locate

# Settings of this shell for another service must not apply here.
unset MAYFLY_URL MAYFLY_TOKEN MAYFLY_TOKEN_FILE

# ---- What may not be lost ----

uuid='[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'

# Prints the names of Mayfly's running instances, one per line. If they cannot be listed, nothing is removed.
running() {
    processes=$(ps -axww -o command=) || fail "cannot list processes with ps"
    printf '%s\n' "$processes" | grep -Eo "mayfly-$uuid" | sort -u
}

# Prints the ids of the service's vms, one per line.
known() { "$target" vm list --quiet --data-dir "$data_dir"; }

if [ "$purge" = yes ]; then
    case $data_dir in
    / | "$HOME" | "$HOME"/ | *..*) fail "$data_dir is not removed: it is not a directory of Mayfly alone" ;;
    esac
    if [ -d "$data_dir" ] && [ ! -f "$data_dir/mayfly.db" ]; then
        fail "$data_dir is not removed: it holds no mayfly.db, so it is not Mayfly's data directory"
    fi
    # Tart's directory may be in it.
    strangers=$(find "$data_dir" -path '*/vms/*/config.json' 2>/dev/null | grep -Ev "/vms/mayfly-$uuid/config\\.json\$") || strangers=''
    [ -z "$strangers" ] || fail "$data_dir is not removed: it holds VMs that are not Mayfly's: $strangers"
fi

if is_healthy; then
    ids=$(known) || fail "the service at $url does not list its vms; nothing was changed"
    if [ -n "$ids" ] && [ "$force" = no ]; then
        say "these vms are live or queued; end them first (mayfly vm delete ID), or use --force:"
        printf '%s\n' "$ids" >&2
        exit 1
    fi
    tries=0
    while [ -n "$ids" ]; do
        # Repeated, because new vms may be created while the service runs.
        for id in $ids; do
            run "$target" vm delete --force --data-dir "$data_dir" "$id"
        done
        [ "$dry_run" = no ] || break
        tries=$((tries + 1))
        [ "$tries" -le 120 ] || fail "these vms do not end; nothing was removed: $ids"
        sleep 1
        ids=$(known) || fail "the service no longer lists its vms; nothing was removed"
    done
else
    names=$(running)
    if [ -n "$names" ] && [ "$force" = no ]; then
        say "the service does not answer at $url, and these vms are running; start it and end them, or use --force to leave them running:"
        printf '%s\n' "$names" >&2
        exit 1
    fi
fi

# ---- What is done ----

boot_out "$logs_label"
boot_out "$label"

# A vm may have been created before the service ended, or was left running on request.
names=$(running)
[ "$dry_run" = no ] || names=''
if [ -n "$names" ]; then
    say "these vms keep running, and no service ends them; for each: tart stop NAME; tart delete NAME"
    printf '%s\n' "$names" >&2
fi

run rm -f "$plist" "$logs_plist" "$target" "$target.previous" "$rotate"
[ ! -d "$prefix/libexec/mayfly" ] || run rmdir "$prefix/libexec/mayfly" || :

if [ "$purge" = yes ]; then
    [ -z "$names" ] || fail "$data_dir is not removed, because running vms may use it"
    run rm -rf "$data_dir" "$log_dir"
elif [ "$dry_run" = no ]; then
    say "Mayfly is uninstalled; $data_dir and $log_dir were kept (--purge removes them)"
fi
