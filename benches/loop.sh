#!/usr/bin/env bash
# The reference of `turnaround`: a simple script instead of Mayfly. One worker clones, boots, waits for the end of the job and
# kills, COUNT times.
#
#   loop.sh WORKDIR IMAGE SEED COUNT WAIT
#
# WAIT is a command that returns when the new guest has finished; its argument is the instance's directory.
set -euo pipefail
work=$1 image=$2 seed=$3 count=$4 wait=$5
relay=${RELAY:-}

network="user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"
[ -z "$relay" ] || network="$network,guestfwd=tcp:10.0.2.100:80-cmd:$relay"

for n in $(seq "$count"); do
    dir=$work/$n
    mkdir -p "$dir"
    qemu-img create -q -f qcow2 -b "$image/disk.qcow2" -F qcow2 "$dir/disk.qcow2"
    cp "$seed" "$dir/seed.img"
    qemu-system-x86_64 -nodefaults -no-user-config -display none -M q35 -accel tcg,thread=multi,tb-size=64 -cpu max \
        -smp 1 -m 192 -no-reboot -daemonize -pidfile "$dir/qemu.pid" -serial "file:$dir/console.log" \
        -kernel "$image/vmlinuz" -initrd "$image/initramfs.img" -append "console=ttyS0 quiet panic=-1" \
        -drive "if=none,id=root,file=$dir/disk.qcow2,format=qcow2,cache=unsafe" -device virtio-blk-pci,drive=root \
        -drive "if=none,id=seed,file=$dir/seed.img,format=raw,readonly=on" -device virtio-blk-pci,drive=seed \
        -netdev "$network" -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci
    pid=$(cat "$dir/qemu.pid")
    $wait "$dir"
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.005; done
    rm -rf "$dir"
done
