#!/bin/sh
# Runs Woodpecker's agent for one workflow. Woodpecker 3.14 or later.
#
#   WOODPECKER_SERVER         host:port of the server for agents (gRPC)
#   WOODPECKER_AGENT_SECRET   the token of this agent alone
#   WOODPECKER_AGENT_LABELS   labels of the agent, name=value with commas; may be empty
#
# The exit status is the agent's: 0 after one workflow, whatever its result was. It is also 0 if the workflow was
# canceled, if the agent may not be given work (`no_schedule`), if the server gave it a workflow that it no longer
# knew, and if the server was away for long: 0 does not say that anything was done. 1: the server does not know the
# token. The agent waits for a workflow without a limit of its own.

directory=$(mktemp -d) || exit 125
trap 'rm -rf "$directory"' EXIT
# The agent hands its environment on to every step, so the token comes through a pipe, which is gone once it was read.
token=$WOODPECKER_AGENT_SECRET
unset WOODPECKER_AGENT_SECRET
mkfifo -m 600 "$directory/token" || exit 125
(
    printf '%s' "$token" >"$directory/token"
    rm -f "$directory/token"
) &
token=''

export WOODPECKER_SERVER WOODPECKER_AGENT_LABELS="${WOODPECKER_AGENT_LABELS:-}"
export WOODPECKER_AGENT_SECRET_FILE="$directory/token"
export WOODPECKER_AGENT_SINGLE_WORKFLOW=true WOODPECKER_BACKEND=local WOODPECKER_MAX_WORKFLOWS=1
# Without a state file and without a port for health checks.
export WOODPECKER_AGENT_CONFIG_FILE='' WOODPECKER_HEALTHCHECK=false
WOODPECKER_HOSTNAME=$(hostname)
export WOODPECKER_HOSTNAME
woodpecker-agent
