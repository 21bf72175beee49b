#!/usr/bin/env bash
# All measurements: tables on the terminal, target/bench/*.json for programs. `run.sh NAME` runs one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
export SQLX_OFFLINE=true
for name in "${@:-accept destroy footprint turnaround}"; do
    for one in $name; do
        case $one in
        accept) cargo bench --quiet --locked --bench accept ;;
        *) python3 benches/bench.py "$one" ;;
        esac
    done
done
