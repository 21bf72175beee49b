#!/usr/bin/env bash
# All measurements: tables on the terminal, target/bench/*.json for programs. `run.sh NAME` runs one of them.
#
#   [BENCH_BESIDE=OLD_BINARY] run.sh [NAME…]
#
# With BENCH_BESIDE, another build of Mayfly is measured in turns with this one instead of the references. `accept` runs the
# service in its own process and has no such form; `create` takes its place.
set -euo pipefail
cd "$(dirname "$0")/.."
export SQLX_OFFLINE=true
beside=()
all="accept destroy footprint turnaround"
if [ -n "${BENCH_BESIDE:-}" ]; then
    beside=(--beside "$BENCH_BESIDE")
    all="create destroy footprint turnaround"
fi
for name in "${@:-$all}"; do
    for one in $name; do
        case $one in
        accept) cargo bench --quiet --locked --bench accept ;;
        *) python3 benches/bench.py "$one" "${beside[@]}" ;;
        esac
    done
done
