#!/usr/bin/env bash
# Makes an image like Debian's genericcloud (amd64) from Debian's packages, for tests on machines that cannot download the real
# one: its partitions, its boot loader, its settings, cloud-init, netplan, and no user, password or key. Nothing is mounted. Needs
# root and mmdebstrap.
#
#   cloud_image.sh OUTDIR
#
# OUTDIR gets debian-13-genericcloud-amd64.qcow2 and SHA512SUMS. IMAGE_SYSTEM names a file that keeps the unpacked packages for the
# next run. The partition for UEFI is empty: the image boots with a BIOS only.
set -euo pipefail
umask 022
out=${1:?usage: cloud_image.sh OUTDIR}
name=debian-13-genericcloud-amd64.qcow2

# Left out: documentation, what only people at a terminal use, and AppArmor, whose profiles take long to load without KVM.
packages=init,libpam-systemd,sudo,e2fsprogs,systemd-resolved,libnss-resolve,libnss-myhostname,netplan.io,polkitd,unattended-upgrades
packages+=,zstd,apt-utils,iputils-ping,linux-sysctl-defaults,less,nano,netbase,whiptail,systemd-timesyncd,openssh-server
packages+=,cloud-initramfs-growroot,cloud-init,cloud-guest-utils,linux-image-cloud-amd64,grub-cloud-amd64,dosfstools
packages+=,initramfs-tools,ca-certificates,curl

say() { echo "cloud_image: $*" >&2; }
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
system=${IMAGE_SYSTEM:-$work/system.tar}
if [ ! -s "$system" ]; then
    say "unpacking trixie: $packages"
    mmdebstrap --quiet --variant=minbase --format=tar --architectures=amd64 --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' trixie "$system.new"
    mv "$system.new" "$system"
fi
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$system" --exclude='./dev/*'
# Its own tools make the disk.
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }

root_part=$(cat /proc/sys/kernel/random/uuid) esp_part=$(cat /proc/sys/kernel/random/uuid) root_fs=$(cat /proc/sys/kernel/random/uuid)

# What Debian's image has beside its packages.
: >"$root/etc/hostname"
: >"$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"
mkdir -p "$root/boot/efi"
cat >"$root/etc/fstab" <<END
PARTUUID=$root_part / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1
PARTUUID=$esp_part /boot/efi vfat defaults,umask=077 0 2
END
cat >"$root/etc/default/grub.d/10_cloud.cfg" <<'END'
GRUB_DISABLE_LINUX_UUID=true
GRUB_DISABLE_LINUX_PARTUUID=
END
echo 'GRUB_TIMEOUT=0' >"$root/etc/default/grub.d/15_timeout.cfg"
cat >"$root/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg" <<'END'
apt:
  generate_mirrorlists: true
system_info:
  default_user:
    name: debian
    lock_passwd: true
    gecos: Debian
    groups: [adm, audio, cdrom, dialout, dip, floppy, plugdev, sudo, video]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
END
# Not in Debian's: devices of an emulated guest appear late on a busy machine, and a missed one ends the boot.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultDeviceTimeoutSec=15min\nDefaultTimeoutStartSec=15min\n' >"$root/etc/systemd/system.conf.d/slow.conf"
sed -i -e 's/^#PasswordAuthentication yes/PasswordAuthentication no/' -e 's/^#PermitRootLogin .*/PermitRootLogin without-password/' \
    "$root/etc/ssh/sshd_config"
inside systemctl --quiet enable systemd-networkd.service systemd-resolved.service 2>/dev/null

# GRUB reads its modules and its settings from the root partition.
kernel=$(cd "$root/boot" && find . -name 'vmlinuz-*' -printf '%f\n' | sort -V | tail -n 1)
mkdir -p "$root/boot/grub/i386-pc"
cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
cat >"$root/boot/grub/grub.cfg" <<END
search --no-floppy --fs-uuid --set=root $root_fs
linux /boot/$kernel root=PARTUUID=$root_part ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0
initrd /boot/initrd.img-${kernel#vmlinuz-}
boot
END
inside grub-mkimage -O i386-pc -p '(,gpt1)/boot/grub' -o /core.img biosdisk part_gpt ext2
mv "$root/core.img" "$work/core.img"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$work/boot.img"

# The partitions are where Debian has them; the root is the last on the disk, so that it can grow.
truncate -s 2G "$root/disk.raw"
inside sfdisk --quiet --no-reread --no-tell-kernel /disk.raw <<END
label: gpt
unit: sectors
/dev/p14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
/dev/p15 : start=8192, size=253952, type=U, uuid=$esp_part
/dev/p1 : start=262144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=$root_part
END
sectors=$(inside sfdisk --dump /disk.raw | sed -n 's/.*start= *262144, size= *\([0-9]*\),.*/\1/p')
truncate -s $((253952 * 512)) "$root/esp.raw"
inside mkfs.vfat -F 32 /esp.raw >/dev/null
mv "$root/disk.raw" "$root/esp.raw" "$work/"
truncate -s $((sectors * 512)) "$work/root.raw"
PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -U "$root_fs" -E lazy_itable_init=1 -d "$root" "$work/root.raw"

put() { # file sector
    dd if="$1" of="$work/disk.raw" bs=512 seek="$2" conv=notrunc,sparse status=none
}
# As grub-bios-setup does it: the boot sector knows where the core begins (at 0x5c), the core's first sector where it goes on
# (at 0x1f4). Bytes of the boot sector behind 440 belong to the partition table.
printf '\x00\x08\x00\x00\x00\x00\x00\x00' | dd of="$work/boot.img" bs=1 seek=$((0x5c)) conv=notrunc status=none
printf '\x01\x08\x00\x00\x00\x00\x00\x00' | dd of="$work/core.img" bs=1 seek=$((0x1f4)) conv=notrunc status=none
dd if="$work/boot.img" of="$work/disk.raw" bs=1 count=440 conv=notrunc status=none
put "$work/core.img" 2048
put "$work/esp.raw" 8192
put "$work/root.raw" 262144

qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/$name"
mv "$work/$name" "$out/$name"
(cd "$out" && sha512sum "$name" >SHA512SUMS)
say "made $out/$name"
