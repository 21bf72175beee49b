#!/usr/bin/env bash
# Runs the fuzz targets, each for FUZZ_SECONDS (60): all of them, or those named.
#
# Works with the stable toolchain: the fuzzed code has no unsafe code, so the targets check for panics, wrong results and
# memory use, and need no sanitizer, which would require a nightly toolchain.
#
# The working corpus is in the cache; fuzz/corpus has only selected inputs. A failing input is in fuzz/artifacts: add it to
# fuzz/corpus with the fix, and `make test` checks it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
cache=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/fuzz
# A separate target directory, because the flags differ, and its results must not be mixed with a build of Mayfly.
export CARGO_TARGET_DIR=$PWD/fuzz/target

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
[ ${#targets[@]} -gt 0 ] || { echo "fuzz.sh: there are no fuzz targets" >&2; exit 1; }

for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    mkdir -p "$cache/$target"
    # 16 MiB for the largest block and its output; an unchecked size from the input would allocate more at once.
    cargo fuzz run --sanitizer none "$target" "$cache/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10 -print_final_stats=1
done
