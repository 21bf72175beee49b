#!/usr/bin/env bash
# What `make run` does: runs a real service, a real guest and one job; the hook in the guest causes the vm's deletion.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${CARGO_TARGET_DIR:-target}/release/mayfly
cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}
image=${MAYFLY_TEST_IMAGE:-$cache/images/micro}
data=${MAYFLY_DEMO_DIR:-$cache/demo}
# Settings of this shell for another Mayfly must not apply here.
unset MAYFLY_URL MAYFLY_TOKEN MAYFLY_TOKEN_FILE
begun=$(date +%s)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

mkdir -p "$data"
chmod 700 "$data"
log=$data/serve.log
say "Starting the service (data in $data, log in $log)"
: >"$log"
# Foreign guests on this machine take slots; this one vm does not wait for them.
"$binary" --data-dir "$data" serve --listen 127.0.0.1:0 --set slots.count_foreign=false 2>>"$log" &
service=$!
finish() {
    kill "$service" 2>/dev/null || true
    wait "$service" 2>/dev/null || true
}
trap finish EXIT

url=
for _ in $(seq 300); do
    url=$(sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$log" | tail -n 1)
    [ -z "$url" ] || break
    if ! kill -0 "$service" 2>/dev/null; then
        cat "$log" >&2
        exit 1
    fi
    sleep 0.1
done
for _ in $(seq 300); do
    if curl --silent --fail --output /dev/null "$url/readyz"; then break; fi
    sleep 0.1
done
mayfly() { "$binary" --data-dir "$data" "$@"; }

say "Its host"
mayfly host
mayfly --json host | python3 -c '
import json, sys
for driver in json.load(sys.stdin)["drivers"]:
    if driver["usable"]:
        note = driver["note"]
        print("\nGuests run under {}{}.".format(driver["accelerator"], ": " + note if note else ""))
'

say "The template, made of $image"
# The image may have been rebuilt since the last run.
if ! mayfly template add micro --from "$image" 2>/dev/null; then
    mayfly template delete micro
    mayfly template add micro --from "$image"
fi

say "One vm for one job"
echo "\$ mayfly vm create --template micro --command 'echo …; uname -sr; sleep 1' --follow"
name=demo-$(date +%s)
# shellcheck disable=SC2016 # it is the guest's host name that is asked for
mayfly vm create --template micro --name "$name" --follow \
    --command 'echo "hello from $(hostname), a fresh vm that lives for this job"; uname -sr; sleep 1'

say "The log of the job"
mayfly vm logs "$name" --source job

say "The end of the vm"
mayfly --json vm show "$name" >"$data/last.json"
python3 - "$data/last.json" <<'PY'
import json, sys
vm = json.load(open(sys.argv[1]))
checks = [
    ("the hook inside the guest called DELETE", vm["announced_by"] == "hook"),
    ("its runner had finished before the vm was destroyed", vm["end_signal"] == "runner_finished"),
    ("the job succeeded", (vm["job"] or {}).get("exit_code") == 0),
    ("the vm is deleted", vm["state"] == "deleted" and vm["outcome"]["result"] == "completed"),
]
for what, holds in checks:
    print(("  yes  " if holds else "  NO   ") + what)
sys.exit(not all(holds for _, holds in checks))
PY
cat <<TEXT

All of it took $(($(date +%s) - begun)) s. \`sudo make install\` puts the program on the PATH. To keep the service running:

    $binary serve                 # http://127.0.0.1:8470, data in ~/.mayfly
    $binary template add micro --from $image

Then open http://127.0.0.1:8470/ for what runs and http://127.0.0.1:8470/docs for the API.
Guides: docs/quick-start.md, docs/api.md, docs/golden-image.md
TEXT
