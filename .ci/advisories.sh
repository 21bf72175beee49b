#!/usr/bin/env bash
# Checks the dependencies against the RustSec advisory database.
#
#   advisories.sh check          downloads the database. Without network it does not pass: it prints when and against what
#                                the dependencies were last checked, and which have changed since.
#   advisories.sh record DIR     checks against a clone of the database in DIR, and writes that record.
set -euo pipefail
cd "$(dirname "$0")/.."
record=.ci/advisories-checked.txt

crates() { awk '$1 == "name" { name = $3 } $1 == "version" && name { print name, $3; name = "" }' Cargo.lock | tr -d '"' | sort; }
deny() { cargo deny "$@" check --hide-inclusion-graph advisories; }

case ${1:-check} in
check)
    if cargo deny --config .deny.toml fetch db 2>/dev/null; then
        deny --config .deny.toml
        exit
    fi
    echo "NOT CHECKED: the advisory database cannot be fetched from here."
    grep '^#' "$record" | sed 's/^# //'
    changed=$(comm -23 <(crates) <(grep -v '^#' "$record"))
    if [ -n "$changed" ]; then
        echo "Added or changed since:"
        while read -r crate; do echo "  $crate"; done <<<"$changed"
    else
        echo "No dependency has been added or changed since."
    fi
    ;;
record)
    source=${2:?"advisories.sh record: which directory holds the clone of the database?"}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # cargo-deny looks for a clone under this name, which is made of the database's address.
    git clone --quiet "$source" "$work/advisory-db-3157b0e258782691"
    sed '/^\[advisories\]/a db-path = "'"$work"'"\nmaximum-db-staleness = "P3650D"\nyanked = "allow"' .deny.toml >"$work/deny.toml"
    deny --offline --config "$work/deny.toml"
    {
        echo "# Last checked on $(date -u +%F) against the database of $(git -C "$source" log -1 --format='%cs, commit %h')."
        echo "# Advisories that are ignored, with reasons: see .deny.toml."
        crates
    } >"$record"
    ;;
*)
    echo "advisories.sh: unknown command: $1" >&2
    exit 2
    ;;
esac
