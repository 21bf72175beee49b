#!/bin/sh
# Everything that tests the guest's half: hooks on this machine, then the kit in real
# guests. Builds the micro image first (nothing to do when it is up to date).
#
#   tests/guest/run.sh [--no-vm]
#
# MAYFLY_MICRO_IMAGE names a ready image instead. Each part ends what it started; the
# limits here are for the day when something hangs all the same.
set -u
here=$(cd "$(dirname "$0")" && pwd -P)
export PYTHONDONTWRITEBYTECODE=1

results=$(mktemp)
trap 'rm -f "$results"' EXIT

part() { # SECONDS COMMAND...
    # The summary line of each part is kept for the sum; all else passes through.
    limit=$1
    shift
    echo "== $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | while IFS= read -r line; do
        case $line in
        *' passed, '*' failed') echo "$line" >>"$results" ;;
        *) echo "$line" ;;
        esac
    done
}

# part_count: a part without a summary line was cut off, which is a failure.
parts=2
part 180 python3 "$here/hooks_test.py"
part 180 python3 "$here/macos_test.py"
if [ "${1:-}" != --no-vm ]; then
    parts=3
    if [ -z "${MAYFLY_MICRO_IMAGE:-}" ]; then
        MAYFLY_MICRO_IMAGE=${XDG_CACHE_HOME:-$HOME/.cache}/mayfly/images/micro
        timeout --kill-after=10 300 "$here/../../deploy/images/micro/build.sh" "$MAYFLY_MICRO_IMAGE" || exit 1
    fi
    export MAYFLY_MICRO_IMAGE
    part 420 python3 "$here/guest_test.py"
fi

awk -v parts="$parts" '{ passed += $1; failed += $3 }
    END { failed += parts - NR; printf "%d passed, %d failed\n", passed, failed; exit failed != 0 }' "$results"
