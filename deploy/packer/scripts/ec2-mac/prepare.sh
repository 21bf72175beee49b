#!/bin/sh
# Makes an EC2 Mac a host of Mayfly. Runs in the session of the user at the screen (dev.mayfly.prepare) and is repeated by launchd
# until it succeeds:
#
#   1. installs and starts Mayfly's service
#   2. pulls the template's image, and runs its test in a vm of it (the canary). ECR is read with the role of the instance
#   3. puts mayfly.toml of the AMI into place, with its pools: jobs come from then on
#
# May be killed at any point.
set -eu
umask 077
PATH=${PREPARE_PATH:-/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin}
export PATH
settings=/usr/local/etc/mayfly
unset MAYFLY_URL MAYFLY_TOKEN MAYFLY_TOKEN_FILE

say() { echo "prepare: $*" >&2; }
die() {
    say "$*"
    exit 1
}
user=$(cat "$settings/user") image=$(cat "$settings/image") name=$(cat "$settings/name")
if [ "$(id -un)" != "$user" ]; then
    # The agent is loaded into every session.
    exit 0
fi
data=$HOME/.mayfly
mkdir -p "$data"

sh /opt/mayfly/share/mayfly/macos/install.sh --binary /opt/mayfly/bin/mayfly --data-dir "$data"
mayfly=$HOME/.local/bin/mayfly

case $image in
*.dkr.ecr.*.amazonaws.com/* | *.dkr.ecr.*.amazonaws.com.cn/*)
    # Mayfly logs in by itself. Without a role it would go on trying for hours.
    token=$(curl -fsS -m 10 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token) ||
        die "the metadata service of the instance does not answer"
    role=$(printf 'header = "X-aws-ec2-metadata-token: %s"\n' "$token" |
        curl -fsS -m 10 -K - http://169.254.169.254/latest/meta-data/iam/security-credentials/) || role=''
    [ -n "$role" ] || die "the instance has no role: launch it with one that may read $image from ECR"
    say "reading $image with the role $role"
    ;;
esac

if "$mayfly" template show "$name" --data-dir "$data" >/dev/null 2>&1; then
    say "the template $name is there"
else
    "$mayfly" template pull "$image" --as "$name" --smoke "$settings/smoke" --data-dir "$data"
fi

# What the service was last started with: only then is the work done. An empty copy stands for no settings.
started=$data/.mayfly.toml.started before=$data/.mayfly.toml.before
if [ -f "$settings/mayfly.toml" ] && ! cmp -s "$settings/mayfly.toml" "$started"; then
    if [ ! -e "$before" ]; then
        if [ -f "$data/mayfly.toml" ]; then cp "$data/mayfly.toml" "$before.new"; else : >"$before.new"; fi
        mv -f "$before.new" "$before"
    fi
    cp "$settings/mayfly.toml" "$data/mayfly.toml.new"
    mv -f "$data/mayfly.toml.new" "$data/mayfly.toml"
    if ! "$mayfly" serve --check --data-dir "$data"; then
        if [ -s "$before" ]; then mv -f "$before" "$data/mayfly.toml"; else rm -f "$data/mayfly.toml" "$before"; fi
        die "the mayfly.toml of the AMI is refused; the service runs with the settings that it had"
    fi
    launchctl kickstart -k "gui/$(id -u)/dev.mayfly.agent"
    rm -f "$before"
    cp "$settings/mayfly.toml" "$started.new"
    mv -f "$started.new" "$started"
fi
say "this Mac is a host of Mayfly"
