#!/usr/bin/env bash
# Builds the "micro" golden image: the smallest guest in which a job can run, out of the
# packages of the Debian or Ubuntu that this runs on. No root needed, nothing mounted.
#
#   build.sh [--force] [--install] [OUTDIR]
#
#   --force     build even if OUTDIR is up to date
#   --install   apt-get install the tools that are missing (root only)
#   OUTDIR      default ${XDG_CACHE_HOME:-$HOME/.cache}/mayfly/images/micro
#
# OUTDIR gets disk.qcow2, the kernel, initramfs.img, an SSH key pair that the guest's
# users root and runner accept, and template.json. It appears by rename, complete or not
# at all, and is built again only when something it is made of has changed.
set -euo pipefail
umask 022
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

say() { echo "micro image: $*" >&2; }
die() {
    say "$*"
    exit 1
}

force='' install='' out=''
for argument in "$@"; do
    case $argument in
    --force) force=1 ;;
    --install) install=1 ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
        exit 0
        ;;
    -*) die "unknown option $argument" ;;
    *) out=$argument ;;
    esac
done
out=${out:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly/images/micro}

if [ "$(uname -s)" != Linux ]; then
    die "this image is made of Debian packages: build it on Debian or Ubuntu (an arm64 container or VM for this Mac's processor) and copy OUTDIR here"
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    die "this image is made of Debian packages, and this system has no apt-get"
fi

machine=$(uname -m)
case $machine in
# no_timer_check: the kernel tests the timer within a few of its ticks, and panics if the
# host gave an emulated guest no processor time in that moment.
x86_64) deb_arch=amd64 cmdline="console=ttyS0 quiet panic=-1 no_timer_check" ;;
aarch64) deb_arch=arm64 cmdline="console=ttyAMA0 quiet panic=-1" ;;
*) die "no guest for $machine hosts, only x86_64 and aarch64" ;;
esac

# --- is there anything to do? -------------------------------------------------

# Querying apt for versions takes most of a second, so a quick check comes first: if apt's
# lists, the installed packages and the files in this directory are unchanged, the image
# is up to date.
own_files() {
    (cd "$here" && find . -type f | sort | xargs sha256sum)
}
quick_key=$({
    own_files
    stat -c '%n %Y %s' /var/lib/apt/lists /var/lib/dpkg/status 2>/dev/null || true
} | sha256sum)
complete() {
    [ -s "$out/template.json" ] && [ -s "$out/disk.qcow2" ] && [ -s "$out/id_ed25519" ]
}
if [ -z "$force" ] && complete && [ "$(cat "$out/.quick-key" 2>/dev/null)" = "$quick_key" ]; then
    say "up to date in $out"
    exit 0
fi

missing=''
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}
need qemu-img qemu-utils
need mkfs.ext4 e2fsprogs
need curl curl
need ssh-keygen openssh-client
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
if [ -n "$missing" ]; then
    if [ -n "$install" ] && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >&2
    else
        die "missing packages: apt-get install --no-install-recommends$missing   (or run with --install as root)"
    fi
fi
PATH=$PATH:/usr/sbin:/sbin

# The kernel's meta package depends on the real one, and on Ubuntu also on a package of
# modules.
kernel_packages() {
    local meta real
    for meta in "linux-image-cloud-$deb_arch" linux-image-virtual; do
        real=$(apt-cache depends "$meta" 2>/dev/null |
            sed -n 's/^ *|\{0,1\}Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
        if [ -n "$real" ]; then
            echo "$real"
            apt-cache show "${real/linux-image/linux-modules}" >/dev/null 2>&1 &&
                echo "${real/linux-image/linux-modules}"
            return 0
        fi
    done
}
mapfile -t kernel < <(kernel_packages || true)
if [ ${#kernel[@]} = 0 ]; then
    if [ -n "$install" ] && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        mapfile -t kernel < <(kernel_packages || true)
    fi
    [ ${#kernel[@]} != 0 ] || die "apt knows no kernel package: run apt-get update first (or this with --install as root)"
fi
libraries=()
for package in $(apt-cache depends dropbear-bin | sed -n 's/^ *|\{0,1\}Depends: \(libtom[^ ]*\)$/\1/p') libgmp10; do
    libraries+=("$package")
done
packages=("${kernel[@]}" busybox-static dropbear-bin "${libraries[@]}")

key=$({
    own_files
    apt-cache policy "${packages[@]}" | sed -n '/^[^ ]/p; /Candidate:/p'
    dpkg-query -W curl bash libc6 2>/dev/null || true
} | sha256sum)
if [ -z "$force" ] && complete && [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
    echo "$quick_key" >"$out/.quick-key"
    say "up to date in $out"
    exit 0
fi

# --- packages -----------------------------------------------------------------

mkdir -p "$(dirname "$out")"
# Of two concurrent builds, the second one waits and then finds the image up to date.
exec 9>"$out.lock"
flock 9
if [ -z "$force" ] && complete && [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ]; then
    say "up to date in $out"
    exit 0
fi
work=$(mktemp -d "$out.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "building from ${packages[*]}"

mkdir "$work/deb" "$work/pkg" "$work/root" "$work/ram" "$work/out"
(cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}") >&2 ||
    die "download failed: run apt-get update and try again"
for deb in "$work"/deb/*.deb; do
    # Documentation and the many drivers for real hardware are not unpacked.
    dpkg-deb --fsys-tarfile "$deb" | tar -C "$work/pkg" -x --no-same-owner \
        --exclude='./usr/share/*' --exclude='*/kernel/sound/*' --exclude='*/kernel/drivers/gpu/*' \
        --exclude='*/kernel/drivers/infiniband/*' --exclude='*/kernel/drivers/media/*' \
        --exclude='*/kernel/drivers/net/ethernet/*' --exclude='*/kernel/drivers/scsi/*'
done
rm -rf "$work/deb"
busybox=$(find "$work/pkg" -path '*bin/busybox' -type f | head -n 1)
modules=$(find "$work/pkg" -path '*lib/modules/*/kernel' -type d | head -n 1)
vmlinuz=$(find "$work/pkg/boot" -name 'vmlinuz-*' -type f | head -n 1)
if [ -z "$busybox" ] || [ -z "$modules" ] || [ -z "$vmlinuz" ]; then
    die "a package has not the content it used to have"
fi

# --- kernel modules -----------------------------------------------------------

find "$modules" -name '*.ko*' -type f >"$work/modules.list"
release=$(basename "$(dirname "$modules")")

# add_modules ROOT NAME...: copies the modules and their dependencies, uncompressed, to
# where the guest's modprobe finds them. Modules that are built into the kernel need no
# copy.
add_modules() {
    local dir=$1/lib/modules/$release name file dependency
    shift
    mkdir -p "$dir"
    for name in "$@"; do
        name=${name//-/_}
        [ ! -e "$dir/$name.ko" ] || continue
        file=$(grep -E "/${name//_/[-_]}\.ko(\.[a-z]+)?$" "$work/modules.list" | head -n 1) || continue
        case $file in
        *.zst) zstd -q -d -c "$file" ;;
        *.xz) xz -d -c "$file" ;;
        *.gz) gzip -d -c "$file" ;;
        *) cat "$file" ;;
        esac >"$dir/$name.ko"
        for dependency in $(tr '\0' '\n' <"$dir/$name.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
            add_modules "${dir%/lib/modules/*}" "$dependency"
        done
    done
}

root=$work/root
mkdir -p "$root"/usr/{bin,sbin,lib,lib64,local/bin}
for name in bin sbin lib lib64; do
    ln -s "usr/$name" "$root/$name"
done
add_modules "$work/ram" virtio_pci virtio_blk ext4
add_modules "$root" virtio_net vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859_1 isofs \
    virtio_rng button evdev qemu_fw_cfg
for tree in "$work/ram" "$root"; do
    "$busybox" depmod -b "$tree" "$release"
done

# --- initramfs ----------------------------------------------------------------

mkdir -p "$work"/ram/{bin,dev,newroot}
cp "$busybox" "$work/ram/bin/busybox"
install -m 0755 "$here/init" "$work/ram/init"
# Not compressed: for an emulated guest, decompression is slower than reading.
(cd "$work/ram" && find . | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$work/out/initramfs.img"

# --- root file system ---------------------------------------------------------

mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,root/.ssh,home/runner/.ssh,opt,var/log,etc/dropbear,etc/ssl/certs}
ln -s ../run "$root/var/run"
cp -R "$here/rootfs/." "$root/"
install -m 0755 "$busybox" "$root/usr/bin/busybox"
"$busybox" --list | while read -r applet; do
    case $applet in
    busybox | bash | dpkg | dpkg-deb | rpm | rpm2cpio) ;;
    init | poweroff | halt | reboot | acpid | modprobe) ln -s ../bin/busybox "$root/usr/sbin/$applet" ;;
    *) ln -s busybox "$root/usr/bin/$applet" ;;
    esac
done

# copy_program FILE DEST: the program and all libraries it is linked against, at the same
# paths as here.
copy_program() {
    local library
    install -D -m 0755 "$1" "$root/$2"
    LD_LIBRARY_PATH=$(find "$work/pkg" -name 'libtom*' -printf '%h\n' | sort -u | head -n 1) \
        ldd "$1" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' >"$work/ldd"
    while read -r library; do
        install -D -m 0755 "$library" "$root/${library#"$work/pkg"}"
    done <"$work/ldd"
}
copy_program "$(command -v bash)" usr/bin/bash
copy_program /usr/bin/curl usr/bin/curl
copy_program "$work/pkg/usr/sbin/dropbear" usr/sbin/dropbear
copy_program "$work/pkg/usr/bin/dropbearkey" usr/bin/dropbearkey
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

ssh-keygen -q -t ed25519 -N '' -C mayfly-micro -f "$work/out/id_ed25519"
for home in root home/runner; do
    install -m 0600 "$work/out/id_ed25519.pub" "$root/$home/.ssh/authorized_keys"
    chmod 0700 "$root/$home" "$root/$home/.ssh"
done
chmod 0640 "$root/etc/shadow"
chmod 1777 "$root/tmp"

truncate -s 128M "$work/disk.raw"
mkfs.ext4 -q -F -b 4096 -L mayfly-micro -m 0 -N 8192 -O ^has_journal,^resize_inode \
    -E lazy_itable_init=0,nodiscard,root_owner=0:0 -d "$root" "$work/disk.raw"
# mkfs copied the owner of every file; without root that is the building user.
(cd "$root" && find . -mindepth 1 -printf '%P\n') | while read -r path; do
    owner=0
    case $path in
    home/runner | home/runner/*) owner=1000 ;;
    esac
    printf 'sif "/%s" uid %s\nsif "/%s" gid %s\n' "$path" "$owner" "$path" "$owner"
done >"$work/owners"
debugfs -w -f "$work/owners" "$work/disk.raw" >/dev/null 2>"$work/debugfs.log"
if grep -qv '^debugfs [0-9]' "$work/debugfs.log"; then
    die "ownership could not be set: $(grep -v '^debugfs [0-9]' "$work/debugfs.log" | head -n 1)"
fi
qemu-img convert -q -f raw -O qcow2 "$work/disk.raw" "$work/out/disk.qcow2"

# --- the template -------------------------------------------------------------

cp "$vmlinuz" "$work/out/vmlinuz"
cat >"$work/out/template.json" <<JSON
{
  "os": "linux",
  "arch": "$machine",
  "kernel": "vmlinuz",
  "initramfs": "initramfs.img",
  "cmdline": "$cmdline",
  "disk": "disk.qcow2",
  "disk_format": "qcow2",
  "memory_mib": 192,
  "cpus": 1,
  "ssh_user": "runner",
  "ssh_key": "id_ed25519"
}
JSON
echo "$key" >"$work/out/.key"
echo "$quick_key" >"$work/out/.quick-key"
chmod 0444 "$work/out"/{disk.qcow2,vmlinuz,initramfs.img}
chmod 0600 "$work/out/id_ed25519"
chmod 0755 "$work/out"

if [ -e "$out" ]; then
    mv "$out" "$work/old"
fi
mv "$work/out" "$out"
say "built in $out"
