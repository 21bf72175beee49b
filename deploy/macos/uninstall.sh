#!/bin/sh
# Takes away what install.sh made. Vms, templates and records stay unless they are asked for.
set -eu

usage() {
    cat <<'END'
Usage: uninstall.sh [-n] [--force] [--purge] [--prefix DIR] [--data-dir DIR] [--url URL]

  -n, --dry-run     say what would be done, and do nothing
  --force           end Mayfly's vms first; without it, their presence stops the uninstallation
  --purge           remove the data directory (templates, records, keys) and the logs, too
  --prefix DIR      where it was installed [as the agent says, else ~/.local]
  --data-dir DIR    what it keeps [as the agent says, else ~/.mayfly]
  --url URL         where the service answers, if not at http://127.0.0.1:8470
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

# ---- What may not be lost ----

uuid='[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'

# Names of instances that Mayfly started and that run now, one per line. Where this cannot be seen, nothing is removed.
running() {
    processes=$(ps -axww -o command=) || fail "ps does not show what runs here"
    printf '%s\n' "$processes" | grep -Eo "mayfly-$uuid" | sort -u
}

# Ids of vms that the service has, one per line.
known() { "$target" vm list --quiet --url "$url" --data-dir "$data_dir"; }

if [ "$purge" = yes ]; then
    case $data_dir in
    / | "$HOME" | "$HOME"/ | *..*) fail "$data_dir is not removed: it is not a data directory of Mayfly's own" ;;
    esac
    if [ -d "$data_dir" ] && [ ! -f "$data_dir/mayfly.db" ]; then
        fail "$data_dir is not removed: it holds no mayfly.db, so it is not Mayfly's data directory"
    fi
    # Tart's directory may have been put into it.
    strangers=$(find "$data_dir" -path '*/vms/*/config.json' 2>/dev/null | grep -Ev "/vms/mayfly-$uuid/config\\.json\$") || strangers=''
    [ -z "$strangers" ] || fail "$data_dir is not removed: it holds VMs that are not Mayfly's: $strangers"
fi

if is_healthy; then
    ids=$(known) || fail "the service answers at $url and does not say which vms it has; nothing was changed"
    if [ -n "$ids" ] && [ "$force" = no ]; then
        say "these vms live or wait; end them first (mayfly vm delete ID), or give --force:"
        printf '%s\n' "$ids" >&2
        exit 1
    fi
    tries=0
    while [ -n "$ids" ]; do
        # Every time, because new ones may come as long as the service runs.
        for id in $ids; do
            run "$target" vm delete --force --url "$url" --data-dir "$data_dir" "$id"
        done
        [ "$dry_run" = no ] || break
        tries=$((tries + 1))
        [ "$tries" -le 120 ] || fail "these vms do not end; nothing was removed: $ids"
        sleep 1
        ids=$(known) || fail "the service no longer says which vms it has; nothing was removed"
    done
else
    names=$(running)
    if [ -n "$names" ] && [ "$force" = no ]; then
        say "the service does not answer at $url, and these vms run; start it and end them, or give --force to leave them running:"
        printf '%s\n' "$names" >&2
        exit 1
    fi
fi

# ---- What is done ----

boot_out "$logs_label"
boot_out "$label"

# A vm may have come between the question and the end of the service, or was left running on purpose.
names=$(running)
[ "$dry_run" = no ] || names=''
if [ -n "$names" ]; then
    say "these vms run on, and nobody ends them now; for each: tart stop NAME; tart delete NAME"
    printf '%s\n' "$names" >&2
fi

run rm -f "$plist" "$logs_plist" "$target" "$target.previous" "$rotate"
[ ! -d "$prefix/libexec/mayfly" ] || run rmdir "$prefix/libexec/mayfly" || :

if [ "$purge" = yes ]; then
    [ -z "$names" ] || fail "$data_dir stays, because vms run that may use it"
    run rm -rf "$data_dir" "$log_dir"
elif [ "$dry_run" = no ]; then
    say "Mayfly is uninstalled; $data_dir and $log_dir stay (--purge removes them)"
fi
