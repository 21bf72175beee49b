#!/usr/bin/env bash
# Makes a disk for linux.pkr.hcl from the packages of the Debian or Ubuntu that this runs on, for machines that cannot download
# a cloud image. Needs root and mmdebstrap.
#
#   debian-base.sh OUTDIR
#
# OUTDIR gets base.qcow2, which has no boot loader, vmlinuz and initrd.img to boot it with, and id_ed25519, the key with which
# root logs in while the template is built (the template does not accept it). BASE_SYSTEM names a file that keeps the unpacked
# packages for the next run. BASE_SIZE is the size of the disk (8G), BASE_PACKAGES adds packages.
set -euo pipefail
umask 022
out=${1:?usage: debian-base.sh OUTDIR}
: "${BASE_SIZE:=8G}" "${BASE_PACKAGES:=}"

say() { echo "debian-base: $*" >&2; }
die() {
    say "$*"
    exit 1
}

[ "$(id -u)" = 0 ] || die "run this as root: it unpacks a system with its owners"
for tool in mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs qemu-img:qemu-utils ssh-keygen:openssh-client; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${tool%%:*}" >/dev/null || die "there is no ${tool%%:*}: apt-get install ${tool#*:}"
done
PATH=$PATH:/usr/sbin:/sbin
[ ! -e "$out/base.qcow2" ] || die "$out/base.qcow2 exists: remove it first, or name another directory"
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
case $(sed -n 's/^ID=//p' /etc/os-release) in
debian) kernel=linux-image-cloud-$(dpkg --print-architecture) ;;
ubuntu) kernel=linux-image-virtual ;;
*) die "this is neither Debian nor Ubuntu" ;;
esac

mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# systemd's own network client: one package less, and it starts faster than the others.
packages=systemd-sysv,udev,dbus,ca-certificates,openssh-server,iproute2,procps,kmod,initramfs-tools,$kernel${BASE_PACKAGES:+,$BASE_PACKAGES}
system=${BASE_SYSTEM:-$work/system.tar}
if [ ! -s "$system" ]; then
    say "unpacking $release: $packages"
    mmdebstrap --quiet --variant=minbase --format=tar --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' "$release" "$system.new"
    mv "$system.new" "$system"
fi
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$system" --exclude='./dev/*'

echo golden >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 golden\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 noatime,errors=remount-ro 0 1' >"$root/etc/fstab"
: >"$root/etc/machine-id"
cat >"$root/etc/systemd/network/80-dhcp.network" <<'END'
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
# Not a number made from the machine id, which clones may share when the lease is requested.
ClientIdentifier=mac
END
install -d "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
# QEMU's user network answers here; a guest of Mayfly gets its servers by DHCP, through resolved where it is installed.
[ -L "$root/etc/resolv.conf" ] || echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
ssh-keygen -q -t ed25519 -N '' -C mayfly-build -f "$work/id_ed25519"
install -D -m 0600 "$work/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
chmod 0700 "$root/root/.ssh"

cp "$(find "$root/boot" -name 'vmlinuz-*' | sort -V | tail -n 1)" "$work/vmlinuz"
cp "$(find "$root/boot" -name 'initrd.img-*' | sort -V | tail -n 1)" "$work/initrd.img"
truncate -s "$BASE_SIZE" "$work/disk.raw"
mkfs.ext4 -q -L root -E lazy_itable_init=1 -d "$root" "$work/disk.raw"
qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/base.qcow2"
mv "$work/vmlinuz" "$work/initrd.img" "$work/id_ed25519" "$work/base.qcow2" "$out/"
say "made $out/base.qcow2"
