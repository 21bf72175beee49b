#!/usr/bin/env bash
# The Debian package under a real systemd, in a guest: started, upgraded, killed, stopped and removed. Needs root, mmdebstrap, QEMU
# and the micro image (make image), whose kernel boots the guest.
#
#   BINARY=target/debug/mayfly tests/deploy/systemd_test.sh
#
# The service in the guest uses the `fake` driver. SYSTEMD_TEST_SYSTEM keeps the unpacked system for the next run; a guest that
# takes longer than SYSTEMD_TEST_SECONDS (600) is ended.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${BINARY:=target/debug/mayfly}"
image=${MAYFLY_TEST_IMAGE:-${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/images/micro}

if [ "$(id -u)" != 0 ]; then
    echo "NOT CHECKED: the Debian package under systemd (making the guest needs root)"
    exit 0
fi
case $(uname -m) in
x86_64) emulator=(qemu-system-x86_64 -M q35) console="console=ttyS0 no_timer_check" ;;
aarch64) emulator=(qemu-system-aarch64 -M virt) console=console=ttyAMA0 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
strip -o "$work/mayfly" "$BINARY"

system=${SYSTEMD_TEST_SYSTEM:-$work/system.tar}
if [ ! -s "$system" ]; then
    # What the package asks for, and what the guest needs to boot.
    mmdebstrap --quiet --variant=minbase --format=tar --include=systemd-sysv,udev,dbus,adduser,init-system-helpers,ca-certificates \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$system.new"
    mv "$system.new" "$system"
fi
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$system" --exclude='./dev/*'
install -d "$root/packages"
for version in 0.1.0 0.1.1; do
    BINARY=$work/mayfly DEB_VERSION=$version OUT=$root/packages SOURCE_DATE_EPOCH=1700000000 COMPRESSION=none \
        deploy/debian/build.sh >/dev/null
done
cp tests/deploy/systemd_inside.sh "$root/packages/inside.sh"
cat >"$root/etc/systemd/system/test.service" <<'END'
[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/bin/sh /packages/inside.sh
StandardOutput=file:/dev/console
StandardError=inherit
END
install -d "$root/etc/systemd/system/default.target.wants"
ln -s ../test.service "$root/etc/systemd/system/default.target.wants/test.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
echo mayfly-test >"$root/etc/hostname"
echo uninitialized >"$root/etc/machine-id"
truncate -s 1G "$work/disk"
mkfs.ext4 -q -d "$root" "$work/disk"
rm -rf "$root"

# One way in, none out: no network.
if ! timeout "${SYSTEMD_TEST_SECONDS:-600}" "${emulator[@]}" -accel tcg,thread=multi -cpu max -smp 2 -m 512 -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$image/vmlinuz" -initrd "$image/initramfs.img" -append "$console quiet panic=-1 systemd.show_status=false" \
    -drive "if=virtio,file=$work/disk,format=raw,cache=unsafe" -device virtio-rng-pci -nic none -serial "file:$work/console"; then
    cat "$work/console" >&2
    echo "systemd_test: the guest did not end" >&2
    exit 1
fi
# The line may follow the prompt of a login.
if ! grep -q 'systemd_test: passed' "$work/console"; then
    cat "$work/console" >&2
    exit 1
fi
sed -n 's/.*systemd_test: passed: //p' "$work/console"
