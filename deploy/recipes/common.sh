#!/bin/sh
# What the recipes share; they read this file. `recipe` is the name of the recipe, for messages.
#
# A recipe makes one pass: it reads what waits on the server, starts the missing vms and removes what vms
# that are gone left on the server. It keeps no state. Each vm has the name of its agent on the server, so
# a pass that was interrupted is completed by the next one.
#
#   RECIPE_NAME       prefix of the names on the server; different for each Mayfly that serves it
#   RECIPE_TEMPLATE   template of the vms
#   RECIPE_MAX_VMS    most vms at once; 2 if unset
#   MAYFLY_…          the service, as for every `mayfly` command

fail() {
    echo "${recipe:-recipe}: $*" >&2
    exit 1
}

say() {
    echo "${recipe:-recipe}: $*"
}

# require VARIABLE...
require() {
    for variable; do
        eval "value=\${$variable:-}"
        if [ -z "$value" ]; then
            fail "$variable is not set"
        fi
    done
}

# begin SERVER TOKEN_FILE HEADER: checks the settings, and lets only one pass run at a time. HEADER is the
# name of the header with the token, and what stands before the token.
begin() {
    server=${1%/}
    require RECIPE_NAME RECIPE_TEMPLATE
    case $RECIPE_NAME in
    *[!a-z0-9-]* | -*) fail "RECIPE_NAME may hold a-z, 0-9 and -, and must not begin with -" ;;
    esac
    if [ "${#RECIPE_NAME}" -gt 24 ]; then
        fail "RECIPE_NAME is longer than 24 characters"
    fi
    max_vms=${RECIPE_MAX_VMS:-2}
    case $max_vms in
    '' | *[!0-9]*) fail "RECIPE_MAX_VMS is not a number" ;;
    esac
    for program in curl jq mayfly; do
        command -v "$program" >/dev/null || fail "the program $program is missing"
    done
    if [ ! -r "$2" ]; then
        fail "cannot read the token in $2"
    fi
    prefix=mayfly-$RECIPE_NAME-
    owner=$recipe/$RECIPE_NAME

    umask 077
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
    # Two passes at once would remove the agent that the other one has just made. A lock file that exists is no
    # sign of a running pass.
    lock=$2.lock
    if command -v flock >/dev/null; then
        exec 9>"$lock"
        flock -n 9 || fail "another pass is running"
    elif command -v shlock >/dev/null; then
        shlock -p $$ -f "$lock" || fail "another pass is running"
    else
        fail "neither flock nor shlock is here"
    fi
    # A file, because every user can read the arguments of a process.
    printf 'header = "%s%s"\n' "$3" "$(tr -d '\r\n' <"$2")" >"$work/token.curlrc"
}

# call METHOD PATH [BODY]: the answer is in $work/answer. Fails if the server refuses or does not answer:
# nothing may be concluded from an answer that is missing.
call() {
    set -- "$1" "$2" "${3:-}"
    printf '%s' "$3" >"$work/body"
    status=$(curl -q -K "$work/token.curlrc" --silent --connect-timeout 10 --max-time 60 --max-filesize 16000000 \
        --request "$1" --header 'Content-Type: application/json' ${3:+--data-binary "@$work/body"} \
        --output "$work/answer" --write-out '%{http_code}' "$server$2") || status=000
    case $status in
    2??) ;;
    000) fail "no answer from $server" ;;
    *) fail "$1 $server$2: status $status: $(head -c 300 "$work/answer" | tr -cd '[:print:]')" ;;
    esac
}

# pages PATH FILE: all pages of a list, as one array. PATH ends in `?` or `&`.
pages() {
    echo '[]' >"$2"
    page=1
    while :; do
        call GET "$1page=$page"
        jq -c --slurpfile before "$2" '$before[0] + (. // [])' "$work/answer" >"$work/list" || fail "$1: no list"
        if [ "$(jq '. // [] | length' "$work/answer")" = 0 ] || [ "$page" -ge 100 ]; then
            break
        fi
        mv "$work/list" "$2"
        page=$((page + 1))
    done
}

# The names of the vms of this recipe, as an array in $work/vms: all that are not deleted, and so those that end.
vms() {
    mayfly vm list --label "owner=$owner" -o name >"$work/names" || fail "the vms cannot be listed"
    jq -Rcn '[inputs]' "$work/names" >"$work/vms"
}

# missing WAITING IDLE: how many vms are started now, with these numbers of jobs and of vms without a job.
missing() {
    room=$((max_vms - $(jq length "$work/vms")))
    count=$(($1 - $2))
    echo $((count < room ? count : room))
}

new_name() {
    echo "$prefix$(od -An -N 4 -t x1 /dev/urandom | tr -d ' \n')"
}

# start NAME SCRIPT: creates the vm. Its environment is in $work/env. If the service refuses, the next
# pass tries again. If its answer is lost, the next pass finds the vm by its name.
start() {
    mayfly vm create --template "$RECIPE_TEMPLATE" --name "$1" --label "owner=$owner" \
        --script-file "$2" --env-file "$work/env" >/dev/null
}
