#!/bin/sh
# Installs Mayfly on a Mac as an agent of the user who is logged in; run again, it upgrades. Needs no root.
# Checks first, and changes nothing if something is missing. Running vms and their jobs continue.
set -eu

usage() {
    cat <<'END'
Usage: install.sh [-n] [--binary FILE] [--prefix DIR] [--data-dir DIR] [--url URL]

  -n, --dry-run     print what would be done, and change nothing
  --binary FILE     the mayfly to install [beside this script, else that of the
                    archive or of target/release that this script is in]
  --prefix DIR      installs to DIR/bin/mayfly [as before, else ~/.local]
  --data-dir DIR    data directory [as before, else ~/.mayfly]
  --url URL         address of the service, if mayfly.toml changes it
                    than http://127.0.0.1:8470
END
}

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/macos/common.sh
. "$here/common.sh"

binary='' prefix='' data_dir='' url=http://127.0.0.1:8470
while [ $# -gt 0 ]; do
    case $1 in
    -n | --dry-run) dry_run=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    --binary | --prefix | --data-dir | --url)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --binary) binary=$(absolute "$2") ;;
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

# ---- What must be there ----

problems=0
problem() {
    problems=$((problems + 1))
    say "$*"
}

[ "$(uname -s)" = Darwin ] || fail "this is not macOS; on Linux: deploy/systemd/mayfly.service"
[ "$(id -u)" != 0 ] || fail "run this as the user who is logged in, without sudo: root has no login keychain, and macOS guests need one"

# Not uname -m: a shell under Rosetta prints x86_64.
[ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ] || problem "this Mac has no Apple chip; Mayfly runs on Apple Silicon only"

macos=$(sw_vers -productVersion)
case ${macos%%.*} in
'' | *[!0-9]*) problem "expected a version of macOS, found: $(printf '%.200s' "$macos")" ;;
*) [ "${macos%%.*}" -ge 13 ] || problem "macOS 13 or later is needed; this is $macos" ;;
esac

# The service's PATH: Homebrew's directories, and those in which tart and macosvm are found now.
path=/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
with_directory_of() { # program
    case :$path: in
    *:"${1%/*}":*) ;;
    *) path=${1%/*}:$path ;;
    esac
}
if macosvm=$(PATH=$path:$PATH command -v macosvm); then
    with_directory_of "$macosvm"
fi
if tart=$(PATH=$path:$PATH command -v tart); then
    with_directory_of "$tart"
    version=$("$tart" --version 2>&1) || version="no version: $version"
    case $version in
    SNAPSHOT) ;;
    *[!0-9.]* | '' | .* | *..* | *.) problem "expected a version from $tart --version, found: $(printf '%.200s' "$version")" ;;
    *.*)
        minor=${version#*.}
        minor=${minor%%.*}
        if [ "${version%%.*}" -lt 2 ] || { [ "${version%%.*}" -eq 2 ] && [ "$minor" -lt 32 ]; }; then
            problem "tart 2.32 or later is needed; $tart is $version: brew upgrade tart"
        fi
        ;;
    *) problem "expected a version from $tart --version, found: $version" ;;
    esac
elif [ -z "$macosvm" ]; then
    problem "there is neither tart nor macosvm: brew install openai/tools/tart (before you do, see the licence notes in docs/macos.md)"
fi

launchctl print "$domain" >/dev/null 2>&1 ||
    problem "nobody is logged in at the screen as this user; set up automatic login (docs/macos.md), log in, and come back"

locate

for directory in "$prefix/bin" "$prefix/libexec/mayfly" "$agents" "$log_dir"; do
    nearest=$directory
    while [ ! -e "$nearest" ]; do nearest=$(dirname "$nearest"); done
    if ! [ -d "$nearest" ] || ! [ -w "$nearest" ]; then
        problem "$nearest is not a directory in which this user may write; it is needed for $directory"
    fi
done

if [ -z "$binary" ]; then
    case $here in
    # Of an archive, or of Homebrew.
    */share/mayfly/macos) built=${here%/share/mayfly/macos}/bin/mayfly ;;
    *) built=$(dirname "$(dirname "$here")")/target/release/mayfly ;;
    esac
    for binary in "$here/mayfly" "$built"; do
        if [ -f "$binary" ]; then break; fi
    done
fi
if [ ! -f "$binary" ]; then
    problem "$binary does not exist: build it with make build, or name one with --binary"
elif ! wanted=$("$binary" --version 2>&1); then
    problem "$binary does not run: $(printf '%.200s' "$wanted"); if it came through a browser: xattr -d com.apple.quarantine '$binary'"
else
    case $wanted in
    'mayfly '*) ;;
    *) problem "expected a version of mayfly from $binary --version, found: $(printf '%.200s' "$wanted")" ;;
    esac
    # If the new version refused the configuration, the Mac would be without a service.
    refused=$("$binary" serve --check --data-dir "$data_dir" 2>&1) || problem "this version refuses the configuration in $data_dir: $refused"
fi

if ! is_loaded "$label" && is_healthy; then
    problem "another service answers at $url; end it first, or set the address of this one with --url"
fi

[ "$problems" = 0 ] || fail "nothing was changed"

if [ -n "${TART_HOME:-}" ]; then
    say "note: the agent does not see your TART_HOME; set it in $data_dir/mayfly.toml as home in [drivers.tart]"
fi

# ---- What is done ----

umask 077
run mkdir -p "$prefix/bin" "$prefix/libexec/mayfly" "$agents" "$log_dir"

# Replaces a file by a new one under the same name, in one step. Overwriting the old one would kill the service: macOS kills
# a program whose signed file changes.
put() { # source target mode
    run cp "$1" "$2.new"
    run chmod "$3" "$2.new"
    run mv -f "$2.new" "$2"
}

new_binary=no
if ! cmp -s "$binary" "$target"; then
    new_binary=yes
    if [ -f "$target" ]; then
        run ln -f "$target" "$target.previous"
    fi
    put "$binary" "$target" 755
fi
if ! cmp -s "$here/rotate-logs.sh" "$rotate"; then
    put "$here/rotate-logs.sh" "$rotate" 755
fi

# Escapes a value for XML, and for the right side of a substitution.
value() {
    printf '%s' "$1" |
        sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' -e 's/[\\&|]/\\&/g'
}

# Renders a plist into $2 if it differs from the existing one. Sets $changed.
render() { # template target
    rendered=$(sed -e "s|@BINARY@|$(value "$target")|g" -e "s|@DATA_DIR@|$(value "$data_dir")|g" \
        -e "s|@PATH@|$(value "$path")|g" -e "s|@LOG_DIR@|$(value "$log_dir")|g" -e "s|@ROTATE@|$(value "$rotate")|g" "$1")
    changed=no
    if [ -f "$2" ] && [ "$rendered" = "$(cat "$2")" ]; then
        return 0
    fi
    changed=yes
    if [ "$dry_run" = yes ]; then
        printf 'would write: %s\n' "$2"
        return 0
    fi
    printf '%s\n' "$rendered" >"$2.new"
    if ! plutil -lint "$2.new" >/dev/null; then
        rm -f "$2.new"
        fail "$2 was not changed: its new content is not a property list, perhaps because of a path in it"
    fi
    chmod 644 "$2.new"
    mv -f "$2.new" "$2"
}

# Makes launchd run the current plist.
load() { # label plist
    if [ "$changed" = yes ]; then
        boot_out "$1"
    elif is_loaded "$1"; then
        return 0
    fi
    # launchd refuses to load an agent that was disabled.
    run launchctl enable "$domain/$1"
    tries=0
    # launchd refuses an agent for a moment after it was removed.
    until run launchctl bootstrap "$domain" "$2"; do
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || fail "launchd refuses to load $2; see: launchctl print $domain/$1"
        sleep 1
    done
}

# After the restart, the service must be another process than this one.
old=''
render "$here/$label.plist" "$plist"
if [ "$changed" = no ] && is_loaded "$label"; then
    if [ "$new_binary" = yes ] || ! is_healthy; then
        old=$(pid)
        run launchctl kickstart -k "$domain/$label"
    fi
else
    load "$label" "$plist"
fi
render "$here/$logs_label.plist" "$logs_plist"
load "$logs_label" "$logs_plist"

[ "$dry_run" = no ] || exit 0

tries=0
until now=$(pid) && [ -n "$now" ] && [ "$now" != "$old" ] && is_healthy; do
    tries=$((tries + 1))
    if [ "$tries" -gt 60 ]; then
        say "the service does not answer at $url/healthz; the end of $log_dir/mayfly.log:"
        tail -n 20 "$log_dir/mayfly.log" >&2 || :
        if [ "$new_binary" = yes ] && [ -f "$target.previous" ]; then
            say "to restore the previous version: mv -f '$target.previous' '$target' && launchctl kickstart -k $domain/$label"
        fi
        exit 1
    fi
    sleep 1
done
say "$wanted answers at $url, with data in $data_dir and its log in $log_dir"
case :$PATH: in
*:"$prefix/bin":*) ;;
*) say "to use the command line, add $prefix/bin to PATH in ~/.zprofile" ;;
esac

if "$target" doctor --help >/dev/null 2>&1; then
    "$target" doctor --data-dir "$data_dir" || say "the service runs; resolve the findings of doctor before running jobs"
fi
