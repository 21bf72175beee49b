#!/bin/sh
# Starts a vm for each job that waits on a Forgejo server (15 or later), and ends vms whose job is over or was canceled.
#
# One pass; run it every ten seconds. See the page "Recipes" of the documentation.
#
#   FORGEJO_URL          the server
#   FORGEJO_TOKEN_FILE   access token that may write the scope's runners
#   FORGEJO_SCOPE        admin, user, orgs/NAME or repos/OWNER/NAME
#   FORGEJO_LABEL        label of the jobs (runs-on)
#   RECIPE_…             see common.sh
set -eu
recipe=forgejo
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=deploy/recipes/common.sh
. "$here/../common.sh"

require FORGEJO_URL FORGEJO_TOKEN_FILE FORGEJO_SCOPE FORGEJO_LABEL
case $FORGEJO_LABEL in
*[!A-Za-z0-9._-]*) fail "FORGEJO_LABEL may hold letters, digits, dots, - and _ only" ;;
esac
begin "$FORGEJO_URL" "$FORGEJO_TOKEN_FILE" 'Authorization: token '
scope=/api/v1/$FORGEJO_SCOPE/actions/runners

# Vms first: a job of the later list is not over.
vms
pages "$scope?limit=50&" "$work/runners"
call GET "$scope/jobs?labels=$FORGEJO_LABEL"
jq -c '. // []' "$work/answer" >"$work/jobs"

# The name of a vm is made of its job's handle, which is another one for each attempt.
jq -c --arg prefix "$prefix" 'map({handle, status, vm: ($prefix + (.handle | ascii_downcase | gsub("[^a-z0-9]"; "") | .[:20]))})' \
    "$work/jobs" >"$work/named"

# The runner of a job that was canceled waits for ever. A vm whose job has just ended has reported it.
jq -r --slurpfile jobs "$work/named" '.[] | select(IN($jobs[0][].vm) | not)' "$work/vms" >"$work/over"
while read -r name; do
    mayfly vm delete "$name" >/dev/null && say "ended $name: its job is over or was canceled"
done <"$work/over"

room=$((max_vms - $(jq length "$work/vms")))
jq -r --slurpfile vms "$work/vms" '
    .[] | select(.status == "waiting" and (.vm | IN($vms[0][]) | not)) | "\(.vm) \(.handle)"' "$work/named" >"$work/waiting"
while read -r name handle; do
    if [ "$room" -le 0 ]; then
        break
    fi
    room=$((room - 1))
    call POST "$scope" "$(jq -cn --arg name "$name" '{name: $name, description: "a vm of Mayfly", ephemeral: true}')"
    token=$(jq -er .token "$work/answer") || fail "the server gave no token for the runner $name"
    uuid=$(jq -er .uuid "$work/answer") || fail "the server gave no uuid for the runner $name"
    printf 'FORGEJO_URL=%s\nFORGEJO_UUID=%s\nFORGEJO_TOKEN=%s\nFORGEJO_LABEL=%s\nFORGEJO_HANDLE=%s\n' \
        "$server" "$uuid" "$token" "$FORGEJO_LABEL" "$handle" >"$work/env"
    if start "$name" "$here/guest.sh"; then
        say "started $name"
    fi
done <"$work/waiting"

# A runner that never had a job stays on the server.
jq -r --arg prefix "$prefix" --slurpfile vms "$work/vms" '
    .[] | select((.name | startswith($prefix)) and (.name | IN($vms[0][]) | not)) | "\(.id) \(.name)"' \
    "$work/runners" >"$work/gone"
while read -r id name; do
    (call DELETE "$scope/$id") && say "removed the runner $name"
done <"$work/gone"
