#!/bin/sh
# The part of deb_test.sh that runs in the chroot: inside.sh PACKAGE NEWER_PACKAGE
set -eu
cd /packages
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root
fail() {
    echo "deb_test: $*" >&2
    exit 1
}
is() { [ "$2" = "$3" ] || fail "$1: $2, expected $3"; }
as_mayfly() { setpriv --reuid=mayfly --regid=mayfly --init-groups env HOME=/var/lib/mayfly "$@"; }
# What a removed package may leave: logs and lists of the package system, and groups.
files() {
    find / -xdev \( -path /proc -o -path /packages -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \
        -o -path /var/lib/apt -o -path /run \) -prune -o -print |
        grep -vE '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|^/etc/\.pwd\.lock$|^/var/lib/systemd(/deb-systemd-helper-.*)?$' |
        sort
}
files >/tmp/before

dpkg -i "$1" >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not installed"; }
mayfly version | grep -q '^mayfly [0-9]' || fail "mayfly version"
is "mode and owner of the data directory" "$(stat -c '%a %U:%G' /var/lib/mayfly)" "700 mayfly:mayfly"
id -nG mayfly | grep -qw kvm || fail "mayfly is not in the group kvm"
is "program of the unit" "$(sed -n 's/^ExecStart=//p' /lib/systemd/system/mayfly.service)" "/usr/bin/mayfly serve"
for file in /usr/share/man/man1/mayfly.1.gz /usr/share/man/man1/mayfly-vm-logs.1.gz \
    /usr/share/bash-completion/completions/mayfly /usr/share/zsh/vendor-completions/_mayfly \
    /usr/share/fish/vendor_completions.d/mayfly.fish; do
    [ -s "$file" ] || dpkg -L mayfly | grep -qx "$file" || fail "$file is missing"
done
if dpkg -L mayfly | grep -E '^/(etc|usr/local|opt)'; then fail "the package has files there"; fi
as_mayfly mayfly serve --check --data-dir /var/lib/mayfly

serve() {
    # Not by the function: the shell would run it in a process of its own.
    setpriv --reuid=mayfly --regid=mayfly --init-groups env HOME=/var/lib/mayfly MAYFLY_SERVER__LISTEN=127.0.0.1:0 "$@" \
        mayfly serve --data-dir /var/lib/mayfly 2>>/tmp/serve.log &
    service=$!
    tries=100
    until as_mayfly mayfly host --data-dir /var/lib/mayfly >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || { cat /tmp/serve.log; fail "the service does not answer"; }
        sleep 0.2
    done
}
serve_fake() {
    serve MAYFLY_DRIVERS__QEMU__ENABLED=false MAYFLY_DRIVERS__FAKE__ENABLED=true
}
stop() {
    kill "$service"
    wait "$service" || fail "the service ended with $?"
}
serve_fake

# An upgrade keeps what is there, and the service that runs.
dpkg -i "$2" >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not upgraded"; }
is "version" "$(dpkg-query -W -f '${Version}' mayfly)" "$(dpkg-deb -f "$2" Version)"
kill -0 "$service" || fail "the upgrade ended the service"
stop
serve_fake
stop

# A vm lives for one job. KVM is not used: that it works on the host says nothing about a chroot.
if [ -d /packages/image ]; then
    chown -R mayfly /packages/image
    serve MAYFLY_DRIVERS__QEMU__ACCELERATOR=tcg
    as_mayfly mayfly --data-dir /var/lib/mayfly template add micro --from /packages/image >/tmp/log 2>&1 ||
        { cat /tmp/log; fail "the template is not registered"; }
    code=0
    as_mayfly mayfly --data-dir /var/lib/mayfly run --template micro -- 'id -un; exit 7' >/tmp/job 2>/tmp/log || code=$?
    [ "$code" = 7 ] || cat /tmp/log /tmp/serve.log
    is "exit code and output of the job" "$code $(cat /tmp/job)" "7 runner"
    is "vms after the job" "$(as_mayfly mayfly --data-dir /var/lib/mayfly vm list --quiet)" ""
    stop
    cat /proc/[0-9]*/comm >/tmp/processes 2>/dev/null || true
    if grep -E 'mayfly|qemu' /tmp/processes; then fail "processes are left"; fi
    is "files of the vm" "$(ls -A /var/lib/mayfly/instances)" ""
fi

# A release that cannot read the database replaces nothing.
if dpkg -i older.deb >/tmp/log 2>&1; then fail "a downgrade over a newer database is accepted"; fi
grep -q 'nothing was changed' /tmp/log || { cat /tmp/log; fail "the refusal does not say what happened"; }
is "version after the refusal" "$(dpkg-query -W -f '${Version} ${db:Status-Status}' mayfly)" "$(dpkg-deb -f "$2" Version) installed"
mayfly version >/dev/null

# Data is kept unless its removal is wanted.
dpkg -r mayfly >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not removed"; }
[ ! -e /usr/bin/mayfly ] || fail "the program is still there"
[ -s /var/lib/mayfly/mayfly.db ] || fail "removing the package removed the data"
dpkg -P mayfly >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not purged"; }
[ -s /var/lib/mayfly/mayfly.db ] || fail "the data was removed without a question"
grep -q 'was kept' /tmp/log || fail "the purge does not say that the data was kept"

touch /usr/local/bin/mayfly
dpkg -i "$1" >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not installed again"; }
grep -q '^mayfly: /usr/local/bin/mayfly is used instead' /tmp/log || fail "a program that hides the package's is not named"
rm /usr/local/bin/mayfly
echo 'mayfly mayfly/remove-data boolean true' | debconf-set-selections
dpkg -P mayfly >/tmp/log 2>&1 || { cat /tmp/log; fail "it is not purged"; }
files >/tmp/after
diff /tmp/before /tmp/after || fail "the purge left files"
if getent passwd mayfly; then fail "the user is still there"; fi
echo "the Debian package is installed, upgraded, not downgraded, removed and purged: as it should be"
