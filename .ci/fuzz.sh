#!/usr/bin/env bash
# Runs the fuzz targets, each for FUZZ_SECONDS (60): all of them, or those named.
#
# Works with the stable toolchain: what is fuzzed has no unsafe code, so it is watched for panics, wrong answers and memory,
# and not by a sanitizer, which would need a nightly one.
#
# What is found on the way is kept in the cache and not in fuzz/corpus, which has what is worth reading. An input that fails is
# in fuzz/artifacts: put it into fuzz/corpus with the change that mends it, and `make test` tries it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/fuzz
# Its own directory: other flags, and nothing of it may be taken for a build of Mayfly.
export CARGO_TARGET_DIR=$PWD/fuzz/target

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
[ ${#targets[@]} -gt 0 ] || { echo "fuzz.sh: there are no fuzz targets" >&2; exit 1; }

for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    mkdir -p "$cache/$target"
    # 16 MiB for the largest block and what it decodes to; a size that was believed would ask for more at once.
    cargo fuzz run --sanitizer none "$target" "$cache/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10 -print_final_stats=1
done
