#!/bin/sh
# Runs Forgejo's runner for the one job that this vm was made for. forgejo-runner 12.8 or later.
#
#   FORGEJO_URL     the server
#   FORGEJO_UUID    uuid of this runner
#   FORGEJO_TOKEN   token of this runner, which takes one job
#   FORGEJO_LABEL   label of the job, without the part after the colon
#   FORGEJO_HANDLE  the job
#
# The exit status is 0 after the job, whatever its result was. The runner waits for its job without a limit of its own,
# also if the job was canceled: the pass ends this vm then.

directory=$(mktemp -d) || exit 125
trap 'rm -rf "$directory"' EXIT
(umask 077 && printf '%s' "$FORGEJO_TOKEN" >"$directory/token") || exit 125
unset FORGEJO_TOKEN
forgejo-runner one-job --url "$FORGEJO_URL" --uuid "$FORGEJO_UUID" --token-url "file:$directory/token" \
    --label "$FORGEJO_LABEL:host" --handle "$FORGEJO_HANDLE" --wait
