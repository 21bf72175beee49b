#!/bin/sh
# Starts a vm for each job that waits in a GitLab project, and cancels jobs whose vm was lost.
#
# One pass; run it every ten seconds. See the page "Recipes" of the documentation.
#
#   GITLAB_URL          the server
#   GITLAB_TOKEN_FILE   access token with the scope `api`, of a user who may manage runners of the project
#   GITLAB_PROJECT      id of the project, a number
#   GITLAB_TAGS         tags of the runners, with commas; jobs without one of them are left to other runners
#   RECIPE_…            see common.sh
set -eu
recipe=gitlab
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=deploy/recipes/common.sh
. "$here/../common.sh"

require GITLAB_URL GITLAB_TOKEN_FILE GITLAB_PROJECT GITLAB_TAGS
case $GITLAB_PROJECT in
*[!0-9]*) fail "GITLAB_PROJECT is not the number of a project" ;;
esac
begin "$GITLAB_URL" "$GITLAB_TOKEN_FILE" 'PRIVATE-TOKEN: '
project=/api/v4/projects/$GITLAB_PROJECT

# Vms first: a job that runs after its vm has gone is lost.
vms
pages "$project/runners?type=project_type&per_page=100&" "$work/runners"
pages "$project/jobs?scope%5B%5D=pending&per_page=100&" "$work/pending"
pages "$project/jobs?scope%5B%5D=running&per_page=100&" "$work/running"

jq -c --arg prefix "$prefix" 'map(select(.description // "" | startswith($prefix)) | {id, name: .description})' \
    "$work/runners" >"$work/own"

# GitLab ends a job whose runner is gone only when the job's own time is over.
jq -r --slurpfile own "$work/own" --slurpfile vms "$work/vms" '
    ($own[0] | map(select(.name | IN($vms[0][]) | not) | .id)) as $gone
    | map(select(.runner.id | IN($gone[])) | .id)[]' "$work/running" >"$work/lost"
while read -r job; do
    call POST "$project/jobs/$job/cancel"
    say "canceled job $job: its vm is gone"
done <"$work/lost"

# A runner takes the jobs of which it has all tags, and these have none without tags.
waiting=$(jq --arg tags "$GITLAB_TAGS" '
    ($tags | split(",")) as $own
    | map(select((.tag_list // []) | length > 0 and all(. as $tag | $tag | IN($own[])))) | length' "$work/pending")
idle=$(jq -n --slurpfile own "$work/own" --slurpfile vms "$work/vms" --slurpfile running "$work/running" '
    ($running[0] | map(.runner.id)) as $busy
    | [$own[0][] | select((.name | IN($vms[0][])) and (.id | IN($busy[]) | not))] | length')
count=$(missing "$waiting" "$idle")

while [ "$count" -gt 0 ]; do
    count=$((count - 1))
    name=$(new_name)
    call POST /api/v4/user/runners "$(jq -cn --arg name "$name" --arg tags "$GITLAB_TAGS" --argjson project "$GITLAB_PROJECT" \
        '{runner_type: "project_type", project_id: $project, description: $name, tag_list: $tags, run_untagged: false}')"
    token=$(jq -er .token "$work/answer") || fail "the server gave no token for the runner $name"
    printf 'CI_SERVER_URL=%s\nCI_SERVER_TOKEN=%s\n' "$server" "$token" >"$work/env"
    if start "$name" "$here/guest.sh"; then
        say "started $name"
    fi
done

jq -r --slurpfile vms "$work/vms" '.[] | select(.name | IN($vms[0][]) | not) | "\(.id) \(.name)"' "$work/own" >"$work/gone"
while read -r id name; do
    (call DELETE "/api/v4/runners/$id") && say "removed the runner $name"
done <"$work/gone"
