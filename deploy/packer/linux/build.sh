#!/usr/bin/env bash
# Builds a Linux template with Packer: disk.qcow2 and template.json in OUTDIR, for `mayfly template add NAME --from OUTDIR`.
#
#   build.sh [--base DIR] [--var-file FILE] [--var NAME=VALUE]... OUTDIR
#
#   --base DIR        begin with what debian-base.sh made in DIR
#   --var-file FILE   values of variables.pkr.hcl, such as debian-13.pkrvars.hcl
#   --var NAME=VALUE  one of them
#
# OUTDIR must not exist. It appears when it is complete; OUTDIR.console has what the guest wrote to its console.
set -euo pipefail
umask 022
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

say() { echo "build: $*" >&2; }
die() {
    say "$*"
    exit 1
}
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; }

base='' out='' options=()
while [ $# -gt 0 ]; do
    case $1 in
    --base | --var | --var-file) [ $# -ge 2 ] || die "$1 needs a value" ;;&
    --base)
        base=$(cd "$2" && pwd -P)
        shift
        ;;
    --var)
        options+=(-var "$2")
        shift
        ;;
    --var-file)
        options+=(-var-file "$(realpath "$2")")
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*) die "unknown option $1" ;;
    *) out=$1 ;;
    esac
    shift
done
[ -n "$out" ] || { usage >&2 && exit 2; }
[ ! -e "$out" ] || die "$out exists: remove it first, or name another directory"
command -v packer >/dev/null || die "there is no packer: https://developer.hashicorp.com/packer/install"
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd -P)/$(basename "$out")

arch=$(uname -m)
[ "$arch" != arm64 ] || arch=aarch64
# The boot of a real guest shows whether KVM works, /dev/kvm does not: a build that hangs there goes on with accelerator=tcg.
if [ "$(uname -s)" = Darwin ]; then accelerator=hvf; elif [ -w /dev/kvm ]; then accelerator=kvm; else accelerator=tcg; fi

work=$(mktemp -d "${TMPDIR:-/tmp}/mayfly-packer.XXXXXX")
trap 'rm -rf "$work" "$out.new"' EXIT
rm -rf "$out.new"
mkdir -p "$work/linux" "$work/seed"
cp "$here"/*.pkr.hcl "$work/linux/"
cp -R "$here/../scripts" "$work/scripts"
version=$(packer version | sed -n 's/^Packer v\([0-9.]*\).*/\1/p')
case $version in
0.* | 1.[0-6].*) rm "$work/linux/plugins.pkr.hcl" ;;
'') die "expected a version from packer version" ;;
*) packer init "$work/linux" ;;
esac

values=(-var "arch=$arch" -var "accelerator=$accelerator" -var "seed=$work/seed" -var "output=$out.new/build")
if [ -n "$base" ]; then
    values+=(-var "image=$base/base.qcow2" -var "kernel=$base/vmlinuz" -var "initramfs=$base/initrd.img"
        -var "ssh_private_key_file=$base/id_ed25519")
else
    ssh-keygen -q -t ed25519 -N '' -C mayfly-build -f "$work/id_ed25519"
    values+=(-var "ssh_private_key_file=$work/id_ed25519")
    cat >"$work/seed/user-data" <<END
#cloud-config
disable_root: false
ssh_pwauth: false
users:
  - name: root
    ssh_authorized_keys:
      - $(cat "$work/id_ed25519.pub")
END
fi
# cloud-init asks ten times for a file that is missing.
echo "instance-id: build-$$-$(date +%s)" >"$work/seed/meta-data"
: >"$work/seed/vendor-data"
: >"$work/seed/network-config"
[ -e "$work/seed/user-data" ] || : >"$work/seed/user-data"

mkdir "$out.new"
# A key of ssh-keygen may not be readable by others.
chmod 0700 "$work"
if ! PACKER_CACHE_DIR=${PACKER_CACHE_DIR:-$work/cache} CHECKPOINT_DISABLE=1 \
    packer build -color=false "${values[@]}" ${options[0]+"${options[@]}"} "$work/linux" >&2; then
    [ ! -e "$out.new/build.console" ] || mv "$out.new/build.console" "$out.console"
    die "packer failed; the guest's console is in $out.console"
fi
mv "$out.new/build.console" "$out.console"
# Compact: what was deleted in the guest takes no space.
qemu-img convert -q -O qcow2 "$out.new/build/disk.qcow2" "$out.new/disk.qcow2"
rm -r "$out.new/build"
user=runner
for option in ${options[0]+"${options[@]}"}; do
    case $option in runner_user=*) user=${option#*=} ;; esac
done
boot=''
if [ -n "$base" ]; then
    cp "$base/vmlinuz" "$base/initrd.img" "$out.new/"
    case $arch in aarch64) console=console=ttyAMA0 ;; *) console='console=ttyS0 no_timer_check' ;; esac
    boot="
  \"kernel\": \"vmlinuz\",
  \"initramfs\": \"initrd.img\",
  \"cmdline\": \"root=/dev/vda ro quiet $console\","
fi
cat >"$out.new/template.json" <<END
{
  "os": "linux",
  "arch": "$arch",$boot
  "disk": "disk.qcow2",
  "disk_format": "qcow2",
  "cpus": 2,
  "memory_mib": 2048,
  "handover": "seed",
  "ssh_user": "$user"
}
END
mv "$out.new" "$out"
say "built $out"
