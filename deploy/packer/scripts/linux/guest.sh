#!/bin/sh
# Prepares a Linux system to be a guest of Mayfly: it reads the seed (the NoCloud volume `cidata`) while it boots, and nothing
# disturbs its jobs. As root:
#
#   sh guest.sh
#
# May be repeated, also after it was killed.
set -eu
umask 022

# Writes standard input to a file, in one step.
put() { # target mode
    mkdir -p "${1%/*}"
    cat >"$1.new"
    chmod "$2" "$1.new"
    mv -f "$1.new" "$1"
}

if command -v cloud-init >/dev/null; then
    # Otherwise it looks for the metadata services of clouds first.
    put /etc/cloud/cloud.cfg.d/95-mayfly.cfg 0644 <<'END'
datasource_list: [NoCloud, None]
END
else
    put /usr/local/lib/mayfly/seed.sh 0755 <<'END'
#!/bin/sh
# Runs the seed's user-data, if there is a seed and its user-data is a script: the part of cloud-init that Mayfly needs.
set -eu
umask 077
for tries in 1 2 3 4 5 6 7 8 9 10; do
    device=$(blkid -L cidata || blkid -L CIDATA) && break
    # The volume may appear a moment after the system's own disk. A guest without a seed is not a guest of Mayfly.
    [ "$tries" -lt 10 ] || exit 0
    sleep 0.2
done
mkdir -p /run/mayfly-seed
mount -o ro,noexec,nosuid,nodev "$device" /run/mayfly-seed
# Nothing can be run from /run.
mkdir -p /var/lib/mayfly-seed
cp /run/mayfly-seed/user-data /var/lib/mayfly-seed/user-data
umount /run/mayfly-seed
case $(head -c 2 /var/lib/mayfly-seed/user-data) in
'#!') ;;
*)
    echo "the seed's user-data is no script: install cloud-init" >&2
    exit 1
    ;;
esac
chmod 0700 /var/lib/mayfly-seed/user-data
exec /var/lib/mayfly-seed/user-data
END
    put /etc/systemd/system/mayfly-seed.service 0644 <<'END'
[Unit]
Description=Start of a CI job from the seed volume
Wants=network-online.target
After=network.target local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
# What the seed starts is the job: it goes on.
KillMode=process
ExecStart=/usr/local/lib/mayfly/seed.sh
StandardOutput=journal+console
StandardError=inherit

[Install]
WantedBy=multi-user.target
END
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -sf /etc/systemd/system/mayfly-seed.service /etc/systemd/system/multi-user.target.wants/mayfly-seed.service
fi

# Host keys are removed from the template. cloud-init makes new ones; without it, this does.
put /etc/systemd/system/ssh.service.d/mayfly.conf 0644 <<'END'
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
END
put /etc/ssh/sshd_config.d/50-mayfly.conf 0644 <<'END'
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
END

# An update in the middle of a job holds the package manager's lock, and takes its processor time.
for timer in apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service man-db.timer e2scrub_all.timer fstrim.timer; do
    ln -sf /dev/null "/etc/systemd/system/$timer"
done
# It writes a seed for random numbers when the image is shut down, which all vms would share. They have a virtio device for that.
ln -sf /dev/null /etc/systemd/system/systemd-random-seed.service

# The power button: how Mayfly asks a guest to stop.
put /etc/systemd/logind.conf.d/mayfly.conf 0644 <<'END'
[Login]
HandlePowerKey=poweroff
END

if command -v update-grub >/dev/null && [ "$(uname -m)" = x86_64 ]; then
    # Without it, the kernel of an emulated guest panics on a busy host.
    # shellcheck disable=SC2016
    put /etc/default/grub.d/95-mayfly.cfg 0644 <<'END'
GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX no_timer_check console=tty0 console=ttyS0"
GRUB_TIMEOUT=0
END
    update-grub
fi
