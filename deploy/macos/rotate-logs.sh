#!/bin/sh
# Limits the size of the logs in a directory: rotate-logs.sh DIRECTORY [BYTES [NUMBER]]
#
# A log larger than BYTES (16 MiB) is copied and truncated, and NUMBER (5) compressed copies are kept. It is truncated and
# not renamed, because launchd opened it for the service and continues to append to the same file. A line that is written
# between the copy and the truncation is lost.
set -eu
umask 077
directory=$1 bytes=${2:-16777216} number=${3:-5}

for log in "$directory"/*.log; do
    if ! [ -f "$log" ] || [ "$(($(wc -c <"$log")))" -le "$bytes" ]; then continue; fi
    # Before any file is moved: if there is no space for the copy, the log and all older copies stay as they are.
    cp "$log" "$log.copy"
    gzip -f "$log.copy"
    n=$number
    while [ "$n" -gt 1 ]; do
        older=$((n - 1))
        if [ -f "$log.$older.gz" ]; then
            mv -f "$log.$older.gz" "$log.$n.gz"
        fi
        n=$older
    done
    mv -f "$log.copy.gz" "$log.1.gz"
    : >"$log"
done
