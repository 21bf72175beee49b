#!/bin/sh
# Keeps the logs in a directory small: rotate-logs.sh DIRECTORY [BYTES [NUMBER]]
#
# A log that has grown beyond BYTES (16 MiB) is copied and emptied, and NUMBER (5) compressed copies are kept. Emptied and not
# renamed, because launchd opened it for the service and goes on writing to the same file, always at its end. A line that
# comes between the copy and the emptying is lost.
set -eu
umask 077
directory=$1 bytes=${2:-16777216} number=${3:-5}

for log in "$directory"/*.log; do
    if ! [ -f "$log" ] || [ "$(($(wc -c <"$log")))" -le "$bytes" ]; then continue; fi
    # Before anything is moved: where there is no room for the copy, the log and all older ones stay as they are.
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
