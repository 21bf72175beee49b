#!/bin/sh
# Returns when the guest has written its marker to the console.
tail -n +1 -F "$1/console.log" 2>/dev/null | grep -q -m1 MAYFLY-BENCH-DONE
