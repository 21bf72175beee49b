#!/bin/sh
# Plays GitHub's runner program in a guest: run.sh as the real one treats its listener's
# exit codes (see bin/Runner.Listener).

root=$(cd "${0%/*}" && pwd -P) || exit 1
while :; do
    "$root/bin/Runner.Listener" run
    code=$?
    case $code in
    2) sleep 5 ;;
    7)
        if [ "$ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE" = 1 ]; then
            exit 7
        fi
        exit 0
        ;;
    # Success and failure look alike, as they do with the real one.
    *) exit 0 ;;
    esac
done
