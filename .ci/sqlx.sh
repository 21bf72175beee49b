#!/bin/sh
# Writes the checked queries' data into the directory $1 (default: .sqlx), from a database that is created by the
# migrations.
# Equivalent to `cargo sqlx prepare`, without building that tool.
set -eu
cd "$(dirname "$0")/.."
out=${1:-.sqlx}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work/schema.db" migrations/*.sql <<'PY'
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
for path in sys.argv[2:]:
    db.executescript(open(path).read())
db.close()
PY
mkdir -p "$out" "$work/new"
new=$work/new
touch src/lib.rs
DATABASE_URL="sqlite://$work/schema.db" SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$new" SQLX_TMP="$work" cargo check --quiet --lib
rm -f "$out"/query-*.json
cp "$new"/query-*.json "$out"/
