#!/bin/sh
# Starts a vm for each workflow that waits on a Woodpecker server, and cancels pipelines whose vm was lost.
#
# One pass; run it every ten seconds. See the page "Recipes" of the documentation.
#
#   WOODPECKER_URL          the server
#   WOODPECKER_TOKEN_FILE   token of an administrator
#   WOODPECKER_GRPC         host:port at which the guests reach the server's gRPC port
#   WOODPECKER_LABELS       labels of the agents, name=value with commas, also those that it has by itself (platform)
#   RECIPE_…                see common.sh
set -eu
recipe=woodpecker
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=deploy/recipes/common.sh
. "$here/../common.sh"

require WOODPECKER_URL WOODPECKER_TOKEN_FILE WOODPECKER_GRPC
begin "$WOODPECKER_URL" "$WOODPECKER_TOKEN_FILE" 'Authorization: Bearer '

# Vms first: a workflow that runs after its vm has gone is lost.
vms
pages '/api/agents?' "$work/agents"
call GET /api/queue/info
cp "$work/answer" "$work/queue"

jq -c --arg prefix "$prefix" 'map(select(.name | startswith($prefix)) | {id, name})' "$work/agents" >"$work/own"

cancel() {
    call POST "/api/repos/$1/pipelines/$2/cancel"
    say "canceled pipeline $2 of repository $1: $3"
}

# Woodpecker never ends a workflow whose agent is gone: the pipeline would be shown as running for ever.
jq -r --slurpfile own "$work/own" --slurpfile vms "$work/vms" '
    ($own[0] | map(select(.name | IN($vms[0][]) | not) | .id)) as $gone
    | .running // [] | map(select(.agent_id | IN($gone[])))[] | "\(.repo_id) \(.pipeline_number)"' "$work/queue" |
    sort -u >"$work/lost"
while read -r repository pipeline; do
    cancel "$repository" "$pipeline" "its vm is gone"
done <"$work/lost"

# A workflow that an agent has begun is not begun again. After a minute without its agent it is listed as waiting, and an
# agent that takes it ends without any work. One that was taken since the list was read is no longer in the next list.
: >"$work/begun"
jq -r '.pending // [] | map("\(.repo_id) \(.pipeline_number) \(.id)")[]' "$work/queue" >"$work/pending"
while read -r repository pipeline task; do
    call GET "/api/repos/$repository/pipelines/$pipeline"
    if jq -e --arg task "$task" '[.workflows // [] | .[] | select("\(.id)" == $task)] | any((.agent_id // 0) != 0)' \
        "$work/answer" >/dev/null; then
        echo "$repository $pipeline $task" >>"$work/begun"
    fi
done <"$work/pending"
: >"$work/dead"
if [ -s "$work/begun" ]; then
    call GET /api/queue/info
    cp "$work/answer" "$work/queue"
    while read -r repository pipeline task; do
        if jq -e --arg task "$task" '.pending // [] | any(.id == $task)' "$work/queue" >/dev/null; then
            echo "$task" >>"$work/dead"
            cancel "$repository" "$pipeline" "the agent of its workflow is gone"
        fi
    done <"$work/begun"
fi
jq -Rcn '[inputs]' "$work/dead" >"$work/dead.json"

# As Woodpecker does it: an agent must have all labels of a workflow, but for those that are internal or empty.
waiting=$(jq --arg labels "backend=local,repo=*,org-id=*,${WOODPECKER_LABELS:-}" --slurpfile dead "$work/dead.json" '
    ($labels | split(",") | map(select(. != "") | split("=") | {key: .[0], value: (.[1:] | join("="))}) | from_entries)
        as $own
    | [.pending // [] | .[] | select(.id | IN($dead[0][]) | not)
        | select(.labels // {} | to_entries
            | map(select(.value != "" and (.key | startswith("woodpecker-ci.org/") | not)))
            | all(. as $wanted | $own[$wanted.key] | . == "*" or . == $wanted.value))] | length' "$work/queue")
paused=$(jq '.paused // false' "$work/queue")

# Agents that have a vm and no workflow take the first ones.
idle=$(jq -n --slurpfile own "$work/own" --slurpfile vms "$work/vms" --slurpfile queue "$work/queue" '
    ($queue[0].running // [] | map(.agent_id)) as $busy
    | [$own[0][] | select((.name | IN($vms[0][])) and (.id | IN($busy[]) | not))] | length')
count=$(missing "$waiting" "$idle")
if [ "$paused" = true ]; then
    count=0
fi

while [ "$count" -gt 0 ]; do
    count=$((count - 1))
    name=$(new_name)
    call POST /api/agents "{\"name\":\"$name\"}"
    token=$(jq -er .token "$work/answer") || fail "the server gave no token for the agent $name"
    printf 'WOODPECKER_SERVER=%s\nWOODPECKER_AGENT_SECRET=%s\nWOODPECKER_AGENT_LABELS=%s\n' \
        "$WOODPECKER_GRPC" "$token" "${WOODPECKER_LABELS:-}" >"$work/env"
    if start "$name" "$here/guest.sh"; then
        say "started $name"
    fi
done

# The rows of agents whose vm is gone. The server refuses (409) to remove one that has a workflow: the next pass does it.
jq -r --slurpfile vms "$work/vms" '.[] | select(.name | IN($vms[0][]) | not) | "\(.id) \(.name)"' "$work/own" >"$work/gone"
while read -r id name; do
    (call DELETE "/api/agents/$id") && say "removed the agent $name"
done <"$work/gone"
