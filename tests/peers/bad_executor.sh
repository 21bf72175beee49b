#!/bin/sh
# The counter-proof of gitlab.py: an executor that does what must be found. It starts MAYFLY with the same arguments, and
# shows a secret in the arguments of a program, runs each script of the job twice, hides how it ended, and cleans up nothing.
for stage; do
    case $stage in
    config | prepare) exec "$MAYFLY" "$@" ;;
    cleanup) exit 0 ;;
    build_script | step_script)
        sh -c 'sleep 1; :' shown "$CUSTOM_ENV_DEPLOY_KEY"
        "$MAYFLY" "$@"
        "$MAYFLY" "$@"
        exit 0
        ;;
    esac
done
exec "$MAYFLY" "$@"
