#!/bin/sh
# Starts wrapper.sh, and tells Mayfly while it lives and when it ends without a result.
#
# Started once, detached, by boot.sh, as the user of that script. While the wrapper works,
# a heartbeat goes to Mayfly every MAYFLY_HEARTBEAT_EVERY seconds. When they stop, Mayfly
# ends the vm: the wrapper and this script were killed, or the guest has lost its network.
# A job of a separate user can do neither (see boot.sh).

PATH=/usr/bin:/bin:/usr/sbin:/sbin
export PATH
unset RUNNER_TRACKING_ID IFS CDPATH LD_PRELOAD LD_LIBRARY_PATH CURL_HOME PERL5LIB PERL5OPT
umask 077

case $0 in
*/*) kit=${0%/*} ;;
*) kit=. ;;
esac
kit=$(cd "$kit" && pwd -P) || exit 1
run=$kit/run
sh=/bin/sh

MAYFLY_RUNNER_KIND='' MAYFLY_ATTEMPT='' MAYFLY_HEARTBEAT_EVERY=30
# shellcheck source=/dev/null
. "$kit/mayfly.env"

# Ends with the wrapper, however that ends, and with this script.
beat() {
    while sleep "$MAYFLY_HEARTBEAT_EVERY" && kill -0 "$1" 2>/dev/null && kill -0 "$2" 2>/dev/null; do
        # shellcheck disable=SC2086  # may be a program and its first argument
        echo '{"type":"heartbeat"}' | $sh "$kit/tell.sh" 3 event >/dev/null 2>&1
    done
}

# shellcheck disable=SC2086
$sh "$kit/wrapper.sh" &
wrapper=$!
beater=''
if [ "$MAYFLY_RUNNER_KIND" != none ]; then
    beat "$wrapper" "$$" &
    beater=$!
fi
wait "$wrapper"
code=$?
[ -z "$beater" ] || kill "$beater" 2>/dev/null
# 75: another wrapper works.
if [ "$code" = 0 ] || [ "$code" = 75 ] || [ -e "$run/wrapper.exit" ] || [ -e "$run/not-started" ]; then
    exit 0
fi
echo "the wrapper ended with $code and without a result"
echo '{"type":"guest_failed","attempt":'"${MAYFLY_ATTEMPT:-0}"',"detail":"the wrapper ended with exit code '"$code"' and without a result"}' |
    $sh "$kit/tell.sh" long event >/dev/null
