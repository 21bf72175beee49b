#!/bin/sh
# The part of systemd_test.sh that runs in the guest, as root, under systemd.
set -eu
cd /packages
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root
unit=mayfly.service
fail() {
    echo "systemd_test: $*"
    systemctl status --no-pager --full "$unit" || :
    journalctl --no-pager --boot --unit "$unit" | tail -n 40
    exit 1
}
is() { [ "$2" = "$3" ] || fail "$1: $2, expected $3"; }
property() { systemctl show --value --property="$1" "$unit"; }
answers() { setpriv --reuid=mayfly --regid=mayfly --init-groups env HOME=/var/lib/mayfly mayfly host --data-dir /var/lib/mayfly >/dev/null 2>&1; }
package() { dpkg "$@" >/tmp/log 2>&1 || { cat /tmp/log && return 1; }; }
# Waits until the service, of another process than $1, answers.
wait_for_another() {
    tries=300
    until main=$(property MainPID) && [ "$main" != 0 ] && [ "$main" != "$1" ] && answers; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "no other service than process $1 answers"
        sleep 0.2
    done
}

mkdir -p "/etc/systemd/system/$unit.d"
cat >"/etc/systemd/system/$unit.d/test.conf" <<'END'
[Service]
Environment=MAYFLY_SERVER__LISTEN=127.0.0.1:0 MAYFLY_DRIVERS__QEMU__ENABLED=false MAYFLY_DRIVERS__FAKE__ENABLED=true
END
package -i mayfly_0.1.0_*.deb || fail "it is not installed"
wait_for_another 0
is "enabled" "$(systemctl is-enabled "$unit")" enabled
is "user of the service" "$(stat -c %U "/proc/$main")" mayfly
grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$main/status" || fail "the service may gain privileges"
warnings=$(systemd-analyze verify "/lib/systemd/system/$unit" 2>&1 | grep -F "$unit" || :)
is "what systemd says about the unit" "$warnings" ''

# Plays a hypervisor: a process of the unit in a session of its own, like every hypervisor that the service starts.
group=/sys/fs/cgroup$(property ControlGroup)
setsid setpriv --reuid=mayfly --regid=mayfly --clear-groups sleep infinity &
hypervisor=$!
echo "$hypervisor" >"$group/cgroup.procs"
runs() { # after what
    kill -0 "$hypervisor" 2>/dev/null || fail "$1 ended a process of the unit that is not the service"
    grep -q "/$unit\$" "/proc/$hypervisor/cgroup" || fail "$1 took a process out of the unit"
}
runs nothing

first=$main
package -i mayfly_0.1.1_*.deb || fail "it is not upgraded"
wait_for_another "$first"
[ ! -e "/proc/$first" ] || fail "the old service runs beside the new one"
is "program of the service" "$(readlink "/proc/$main/exe")" /usr/bin/mayfly
runs "the upgrade"

second=$main
kill -KILL "$main"
wait_for_another "$second"
runs "a killed service"

systemctl stop "$unit"
is "state after stop" "$(property ActiveState)" inactive
runs "a stop"

# A refused configuration is refused once.
echo 'nowhere = 1' >/var/lib/mayfly/mayfly.toml
systemctl start "$unit" || :
tries=100
until [ "$(property ActiveState)" = failed ]; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || fail "a service with a refused configuration is $(property ActiveState)"
    sleep 0.2
done
is "exit code" "$(property ExecMainStatus)" 2
is "restarts after a refused configuration" "$(property NRestarts)" 0
rm /var/lib/mayfly/mayfly.toml
systemctl start "$unit"
wait_for_another 0

package -r mayfly || fail "it is not removed"
kill -0 "$hypervisor" || fail "removing the package ended a process of the unit that is not the service"
echo "systemd_test: passed: the package under systemd: started, upgraded, killed, stopped, refused and removed, and no hypervisor ended"
